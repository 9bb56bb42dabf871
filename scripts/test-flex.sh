#!/usr/bin/env bash
# Builds the worker without libtorch, runs its tests, and trains for a few steps
# on two workers of the flex device.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${FLEX_TARGET:-target/flex}
flags=(--release --target-dir "$target" --no-default-features --features flex,parquet)
# What names no device was tested with the other build.
cargo test "${flags[@]}" -p worker --lib --bins -- --skip data:: --skip figures:: --skip cluster::
cargo test "${flags[@]}" -p worker --test course
cargo build "${flags[@]}" -p worker -p coordinator
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
"$target/release/coordinator" local configs/alexnet-synthetic.toml --workers 2 --devices flex \
    --run-dir "$run/run" --set train.max_steps=20 --set data.train=640 --set data.val=100
grep -q '"world": 2' "$run/run/summary.json"
if grep -q torch <<< "$(ldd "$target/release/worker")"; then
    echo "the flex build links libtorch" >&2
    exit 1
fi
echo "flex: trained 20 steps on two workers without libtorch"
