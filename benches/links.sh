#!/usr/bin/env bash
# Trains on hosts of their own: network namespaces on a bridge, each with a link of a given
# rate both ways and packets of 1,500 bytes, and a worker of one thread on a core of its own.
# Needs root, ip and tc. Prints the run's images per second and bytes.
#
#   benches/links.sh RATE WORKERS CONFIG [coordinator's arguments]
#   benches/links.sh 1gbit 2 benches/alexnet-224.toml --set cluster.dense=sum
#   benches/links.sh RATE PROCESSES ddp [arguments of pytorch/alexnet.py]: DistributedDataParallel over gloo instead
#
# SHARE=60 gives each host 60 % of a core by a control group, so that two cores are three hosts.
set -euo pipefail
cd "$(dirname "$0")/.."
rate=$1 workers=$2 config=$3
shift 3
bin=${BIN:-target/release}
run=$(mktemp -d)
name=rl$$
# Control groups of the processor's time, version 1 or 2.
groups=/sys/fs/cgroup
[ ! -d "$groups/cpu" ] || groups+=/cpu
# on_host N COMMAND...: runs it on that worker's host, in its place.
on_host() {
    local host=$name-$1 core=$((($1 - 1) % $(nproc)))
    shift
    if [ -n "${SHARE:-}" ]; then
        mkdir "$groups/$host"
        if [ -e "$groups/$host/cpu.max" ]; then
            echo "$((SHARE * 100)) 10000" >"$groups/$host/cpu.max"
        else
            echo 10000 >"$groups/$host/cpu.cfs_period_us"
            echo "$((SHARE * 100))" >"$groups/$host/cpu.cfs_quota_us"
        fi
        echo "$BASHPID" >"$groups/$host/cgroup.procs"
        exec ip netns exec "$host" "$@"
    fi
    exec ip netns exec "$host" taskset -c "$core" "$@"
}
cleanup() {
    for pid in $(jobs -p); do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for n in $(seq 0 "$workers"); do
        ip netns del "$name-$n" 2>/dev/null || true
        [ ! -d "$groups/$name-$n" ] || rmdir "$groups/$name-$n" 2>/dev/null || true
    done
    ip link del "$name" 2>/dev/null || true
    rm -rf "$run"
}
trap cleanup EXIT

ip link add "$name" type bridge
ip link set "$name" up
# Host 0 is the coordinator's; its link is as fast as the others.
for n in $(seq 0 "$workers"); do
    ip netns add "$name-$n"
    ip link add "$name.$n" type veth peer name eth0 netns "$name-$n"
    ip link set "$name.$n" master "$name" up
    ip -n "$name-$n" addr add "10.77.0.$((n + 1))/24" dev eth0
    ip -n "$name-$n" link set eth0 up
    ip -n "$name-$n" link set lo up
    # Segments that the kernel would cut later count as one packet here.
    ip netns exec "$name-$n" ethtool -K eth0 tso off gso off gro off >/dev/null 2>&1 || true
    tc qdisc add dev "$name.$n" root tbf rate "$rate" burst 256kb latency 20ms
    ip netns exec "$name-$n" tc qdisc add dev eth0 root tbf rate "$rate" burst 256kb latency 20ms
done
if [ "$config" = ddp ]; then
    python=${PYTHON:-${XDG_CACHE_HOME:-$HOME/.cache}/ringleader/bench-venv/bin/python}
    for n in $(seq 1 "$workers"); do
        GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 on_host "$n" \
            "$python" -m torch.distributed.run --nnodes "$workers" --node-rank "$((n - 1))" --nproc-per-node 1 \
            --master-addr 10.77.0.2 --master-port 29500 benches/pytorch/alexnet.py --threads 1 "$@" >"$run/ddp-$n" 2>&1 &
        last=$!
    done
    wait "$last" || { cat "$run"/ddp-* >&2; exit 1; }
    wait
    cat "$run"/ddp-* | grep '^{' || cat "$run"/ddp-* >&2
    exit
fi

ip netns exec "$name-0" "$bin/coordinator" serve "$config" --listen 10.77.0.1:7474 --workers "$workers" \
    --run-dir "$run/run" -q "$@" >"$run/log" 2>&1 &
coordinator=$!
until [ -s "$run/run/keys/join" ]; do sleep 0.1; done
token=$(grep -o -m1 'rl1-[A-Za-z0-9]*' "$run/run/keys/join")
for n in $(seq 1 "$workers"); do
    on_host "$n" "$bin/worker" join 10.77.0.1:7474 --token "$token" -q >"$run/worker-$n" 2>&1 &
done
if ! wait "$coordinator"; then
    cat "$run/log" "$run"/worker-* >&2
    exit 1
fi
python3 - "$run/run/summary.json" <<'P'
import json, sys
s = json.load(open(sys.argv[1]))
parts = ", ".join(f"{name} {ms:.0f}" for name, ms in s["parts"].items())
print(f"{s['images_per_second']:.1f} images/s on {s['world']} workers; step {s['step_ms']['p50']:.0f} ms: {parts}; "
      f"{s['bytes_sent'] / s['world'] / s['steps'] / 1e6:.2f} MB a worker and step; {s['peak_rss_bytes'] / 1e6:.0f} MB")
P
