#!/usr/bin/env bash
# Builds the worker against a libtorch with CUDA and checks what a machine without a GPU
# can tell: that it links and starts, that the engines compute, that every operator has a
# kernel for CUDA, and that a GPU which is not there is named as such.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! LIBTORCH=$(scripts/libtorch.sh cuda); then
    echo "cuda: skipped: no libtorch with CUDA could be fetched" >&2
    exit 0
fi
export LIBTORCH
target=${CUDA_TARGET:-target/cuda}
flags=(--release --target-dir "$target" -p worker)
cargo build "${flags[@]}"
worker=$target/release/worker
"$worker" doctor
cargo test "${flags[@]}" --lib -- engine:: replica::

[ -e /proc/driver/nvidia/version ] && { echo "cuda: passed"; exit 0; }
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
if "$worker" train configs/alexnet-synthetic.toml --devices cuda:0 --run-dir "$run/run" > "$run/out" 2>&1; then
    echo "training on a GPU that is not there succeeded" >&2
    exit 1
fi
cat "$run/out"
grep -q 'cuda:0.* cannot be used: there is no NVIDIA GPU in this machine' "$run/out"
! grep -q panicked "$run/out"
echo "cuda: passed"
