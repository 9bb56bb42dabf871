#!/usr/bin/env bash
# Everything that a GPU must show, in one call and one table.
#
#   scripts/gpu-check.sh build [VERSION]   build for libtorch VERSION [2.11.0] into target/gpu-check
#   scripts/gpu-check.sh run [BENCH...]    on the machine with the GPU: check, then `make bench-gpu`'s
#                                          rows with these options; --no-bench leaves them out
#
# The machine with the GPU needs Python with that torch, and no network: the folder holds
# stripped binaries, which find libtorch in Python's torch. DEVICE names another device, for
# example cpu:resident to try this script.
set -uo pipefail
cd "$(dirname "$0")/.."
here=target/gpu-check

if [ "${1:-}" = build ]; then
    set -e
    version=${2:-2.11.0}
    LIBTORCH=$(scripts/libtorch.sh cuda "$version")
    export LIBTORCH LIBTORCH_BYPASS_VERSION_CHECK=1
    cargo build --release --target-dir "$here/build" -p worker -p coordinator
    tests=$(cargo test --release --target-dir "$here/build" -p worker --lib --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
    for binary in worker coordinator; do strip -o "$here/$binary" "$here/build/release/$binary"; done
    strip -o "$here/tests" "$tests"
    ls -l "$here"/{worker,coordinator,tests}
    exit 0
fi
[ "${1:-}" = run ] || { sed -n '2,/^set/p' "$0" | grep '^#' | cut -c3-; exit 2; }
shift

device=${DEVICE:-cuda:0}
python=${PYTHON:-python3}
torch=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))' 2>/dev/null) &&
    export LD_LIBRARY_PATH="$torch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
worker=$here/worker coordinator=$here/coordinator
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
rows=()

# check NAME COMMAND...: runs it; what it prints last stands in the table.
check() {
    local name=$1 start=$SECONDS result=ok
    shift
    if ! "$@" > "$work/out" 2>&1; then
        result=FAILED
        failed=1
        sed "s/^/$name: /" "$work/out" | tail -40 >&2
    fi
    rows+=("$(printf '%-32s %-7s %4d s  %s' "$name" "$result" $((SECONDS - start)) "$(grep . "$work/out" | tail -1 | cut -c1-110)")")
    printf '%s\n' "${rows[-1]}" >&2
}

# A small AlexNet of fifty steps: run NAME COMMAND... with more options.
# Its learning rate is small enough for differences of rounding to stay small.
sets=(--set data.train=3200 --set data.val=100 --set train.max_steps=50 --set train.checkpoint_steps=20
    --set train.optimizer=sgd --set train.lr=0.001 --set train.clip_norm=5 --set train.schedule=constant)
alexnet=configs/alexnet-synthetic.toml
single() { local name=$1; shift; "$worker" train "$alexnet" -q --run-dir "$work/$name" "${sets[@]}" "$@"; }
cluster() { local name=$1; shift; "$coordinator" local "$alexnet" -q --run-dir "$work/$name" "${sets[@]}" --worker-binary "$worker" "$@"; }

# losses A B TOLERANCE: the largest relative distance of two runs' losses.
losses() {
    "$python" - "$work/$1" "$work/$2" "$3" <<'PY'
import json, sys

def losses(run):
    return [step["loss"] for step in map(json.loads, open(run + "/metrics.jsonl")) if "step_ms" in step]

one, other = losses(sys.argv[1]), losses(sys.argv[2])
assert len(one) == len(other) > 0, (len(one), len(other))
worst = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(one, other))
print(f"losses of {len(one)} steps differ by {worst:.2e} at most")
sys.exit(worst > float(sys.argv[3]))
PY
}
digest() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1] + "/summary.json"))["weights_blake3"])' "$work/$1"; }

same_losses() { local to=$1 tolerance=$2 name=$3; shift 3; "$@" && losses "$to" "$name" "$tolerance"; }
same_bits() {
    single bits-1 --devices "$device" --set train.reproducible=true && single bits-2 --devices "$device" --set train.reproducible=true &&
        [ "$(digest bits-1)" = "$(digest bits-2)" ] && echo "both $(digest bits-1 | cut -c1-16)"
}
resumes() {
    single resumed --devices "$device" --set train.max_steps=20 && single resumed --devices "$device" --resume && losses gpu resumed 2e-3
}
says_out_of_memory() {
    local out
    out=$("$worker" bench step --devices "$device" --batch 200000 --steps 1 2>&1) && return 1
    grep -m1 'too little memory.*train.micro_batch' <<< "$out"
}
survives_a_kill() {
    cluster killed --workers 2 --devices "$device,$device" --set train.max_steps=400 &
    local run=$! victim
    until [ "$(grep -c step_ms "$work/killed/metrics.jsonl" 2>/dev/null)" -ge 20 ] 2>/dev/null; do sleep 0.2; kill -0 $run || return 1; done
    # The first child of the coordinator, which is the only child of this shell's copy.
    victim=$(pgrep -o -P "$(pgrep -o -P $run)")
    kill -9 "$victim" && wait $run && "$python" - "$work/killed" <<'PY'
import json, sys

recoveries = json.load(open(sys.argv[1] + "/summary.json"))["recoveries"]
print(f"recovered {len(recoveries)} time(s)")
sys.exit(not recoveries)
PY
}

check "worker doctor" "$worker" doctor
check "tests of engine and replica" "$here/tests" engine:: replica::
check "50 steps on the CPU" single cpu --devices cpu
check "50 steps on $device" same_losses cpu 5e-3 gpu single gpu --devices "$device"
check "two engines on one device" same_losses gpu 5e-3 group single group --devices "$device,$device"
check "two workers on one device" same_losses gpu 5e-3 ring cluster ring --workers 2 --devices "$device,$device" --set cluster.wire=f32
check "the same bits twice" same_bits
check "resume" resumes
check "a kill in a cluster" survives_a_kill
[ "${device%%:*}" = cuda ] && check "out of memory is said" says_out_of_memory
[ "${device%%:*}" = cuda ] && check "micro_batch = auto" single auto --devices "$device" --set train.micro_batch=auto

printf '\n'
printf '%s\n' "${rows[@]}"
if [ "${1:-}" != --no-bench ]; then
    "$python" benches/run.py --gpu --bin "$here" --python "$(command -v "$python")" --no-goals "$@" || failed=1
fi
exit $failed
