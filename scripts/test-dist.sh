#!/usr/bin/env bash
# Trains from the folder that scripts/dist.sh makes, moved elsewhere, as another user, in a
# root folder that holds nothing but it and glibc. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/dist.sh --folder
made=$(find dist -mindepth 1 -maxdepth 1 -type d -name 'ringleader-*' -printf '%T@ %p\n' | sort -rn | awk 'NR == 1 { print $2 }')
if ! unshare --mount --pid --fork mount -t proc proc /proc 2>/dev/null; then
    echo "dist: not tried in a bare root folder, which only root can make" >&2
    exit 0
fi
root=$(mktemp -d "$PWD/dist/.root.XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir -p "$root"/{proc,dev,tmp,elsewhere}
chmod 1777 "$root/tmp"
cp -al "$made" "$root/elsewhere/moved here"

# The loader, at the place that the binaries name, and glibc.
known=$(ldconfig -p)
loader=$(readelf -l "$made/bin/worker" | sed -n 's/.*interpreter: \(.*\)]/\1/p')
mkdir -p "$root$(dirname "$loader")"
cp -L "$loader" "$root$loader"
for library in libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1; do
    from=$(awk -v name=$library '$1 == name && /x86-64|AArch64/ { print $NF; exit }' <<< "$known")
    mkdir -p "$root$(dirname "$from")"
    cp -L "$from" "$root$from"
done

here="/elsewhere/moved here"
bare() {
    env -i unshare --mount --pid --fork -- /bin/sh -c '
        root=$1 && shift
        mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" || exit 1
        exec chroot --userspec=65534:65534 "$root" "$@"' sh "$root" "$@"
}
bare "$here/bin/worker" doctor
bare "$here/bin/coordinator" local "$here/configs/alexnet-synthetic.toml" --workers 2 --run-dir /tmp/run \
    --set train.max_steps=4 --set data.train=640 --set data.val=64 --set model.width=0.125
grep -q '"world": 2' "$root/tmp/run/summary.json"
bare "$here/bin/worker" eval /tmp/run > /dev/null
grep -q '^ringleader-' "$made/RELEASE"
grep -q 'crates' "$made/licenses/THIRD-PARTY.txt"
if awk '/RPATH|RUNPATH/ && !/\[\$ORIGIN/ { print; found = 1 } END { exit !found }' <<< "$(readelf -d "$made"/bin/* "$made"/lib/* 2>/dev/null)"; then
    echo "dist: a run path names this machine" >&2
    exit 1
fi
echo "dist: trained and evaluated in a bare root folder"
