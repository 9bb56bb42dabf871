"""The driver of the benchmarks. It needs Python's standard library only; PyTorch runs in processes of its own."""
