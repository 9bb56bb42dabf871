#!/usr/bin/env bash
# Builds the worker without libtorch, and trains for a few steps on two workers of the flex
# device. What is passed on is one file under 60 MB.
#
#   scripts/test-flex.sh [build]     build alone, or all of it
set -euo pipefail
cd "$(dirname "$0")/.."

target=${FLEX_TARGET:-target/flex}
flags=(--release --target-dir "$target" --no-default-features --features flex,parquet)
cargo build "${flags[@]}" -p worker -p coordinator
# The other build has this device, too, and tests what it computes. Here the tests only have
# to compile.
cargo check "${flags[@]}" -p worker --tests
[ "${1:-}" = build ] && exit 0
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
"$target/release/coordinator" local configs/alexnet-synthetic.toml --workers 2 --devices flex \
    --run-dir "$run/run" --set train.max_steps=20 --set data.train=640 --set data.val=100
grep -q '"world": 2' "$run/run/summary.json"
"$target/release/worker" eval "$run/run" >/dev/null
# It needs glibc and the compiler's own library, which every system has, and nothing else.
needed=$(ldd "$target/release/worker" | awk '{ print $1 }' | grep -vE '^(linux-vdso|(/.*/)?ld-linux.*|lib(c|m|dl|pthread|rt|gcc_s))\.so' || true)
if [ -n "$needed" ]; then
    echo "the flex worker is not one file: it needs $needed" >&2
    exit 1
fi
# As scripts/dist.sh makes it.
strip -o "$run/worker" "$target/release/worker"
bytes=$(stat -c %s "$run/worker")
if [ "$bytes" -ge 60000000 ]; then
    echo "the flex worker has $bytes bytes, and not less than 60 MB" >&2
    exit 1
fi
echo "flex: the worker is one file of $bytes bytes"
echo "flex: trained 20 steps on two workers without libtorch"
