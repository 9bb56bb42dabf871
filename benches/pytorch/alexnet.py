"""AlexNet training steps on random pictures: one process, or DistributedDataParallel over gloo under torchrun.

    python alexnet.py --batch 32 --threads 2 --bf16 --channels-last
    torchrun --standalone --nproc-per-node 2 alexnet.py --batch 32 --threads 1 --bf16

The input is one fixed batch, so nothing but the step is measured. The batch is that of each process.
"""
from __future__ import annotations

import argparse
import os
import time
from typing import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from net import PRESETS, alexnet, emit, median, parameters, peak_rss_bytes, slowest


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="pictures of each process")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="original")
    parser.add_argument("--width", type=float, default=1.0, help="scales channels and hidden units")
    parser.add_argument("--steps", type=int, default=6, help="steps that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N; processes under torchrun share it")
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--tf32", action="store_true", help="f32 arithmetic by TF32, on a GPU")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--fused", action="store_true", help="the fused optimizer")
    parser.add_argument("--graph", action="store_true", help="the whole step as one CUDA graph, in one process")
    parser.add_argument("--compress", action="store_true", help="gradients travel as bf16 (DDP's bf16_compress_hook)")
    return parser.parse_args()


def captured(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The same step, replayed from a CUDA graph."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    # What is allocated and chosen in the first steps must not be part of the graph.
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return loss

    return replay


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))

    model: nn.Module = alexnet(args.classes, args.size, args.preset, args.width).to(device)
    count = parameters(model)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    labels = torch.randint(0, args.classes, (args.batch,), device=device)
    if args.channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    if world > 1:
        # gloo, also on a GPU: NCCL refuses two processes on one device.
        dist.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        if args.compress:
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            model.register_comm_hook(None, default_hooks.bf16_compress_hook)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.001, momentum=0.9, weight_decay=5e-4, fused=True if args.fused else None
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        # A graph must not keep casts of weights from one step to the next.
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16, cache_enabled=not args.graph):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        return loss

    if args.graph:
        step = captured(step)
    times = []
    for _ in range(args.warmup + args.steps):
        if world > 1:
            dist.barrier()
        start = time.perf_counter()
        # Waits for all that was queued on a GPU, the update included.
        value = step().item()
        times.append(time.perf_counter() - start)

    peak = float(peak_rss_bytes())
    if world > 1:
        times, peak = slowest(times), slowest([peak])[0]
    counted = times[args.warmup :]
    if rank == 0:
        emit(
            images_per_second=args.batch * world / median(counted),
            best_images_per_second=args.batch * world / min(counted),
            step_ms=median(counted) * 1e3,
            peak_rss_bytes=int(peak),
            parameters=count,
            world=world,
            loss=value,
        )
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
