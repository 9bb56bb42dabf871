#!/usr/bin/env bash
# Trains from the folder that scripts/dist.sh makes, moved elsewhere, as another user, in a
# root folder that holds nothing but it and glibc, which needs root. Before, looks into the
# package of it, where dpkg-deb is.
set -euo pipefail
cd "$(dirname "$0")/.."

newest() { find dist -mindepth 1 -maxdepth 1 -name "$1" -type "$2" -printf '%T@ %p\n' | sort -rn | awk 'NR == 1 { print $2 }'; }

scripts/dist.sh --package
made=$(newest 'ringleader-*' d)
if command -v dpkg-deb > /dev/null; then
    package=$(newest 'ringleader_*.deb' f)
    listed=$(dpkg-deb --contents "$package")
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$unpacked" ./usr/share
    lacks() { echo "dist: $package lacks $1" >&2 && exit 1; }
    has() { # FILE WORDS: the package has the file, with these words in it
        grep -qF " .$1" <<< "$listed" || lacks "$1"
        # gzip hands a file that is not compressed on as it is.
        grep -qF -- "$2" <<< "$(gzip -dcf "$unpacked$1")" || lacks "\"$2\" in $1"
    }
    for called in ringleader-worker ringleader-coordinator; do
        grep -qF " ./usr/bin/$called -> " <<< "$listed" || lacks "$called"
        has "/usr/share/bash-completion/completions/$called" "default $called"
        has "/usr/share/zsh/vendor-completions/_$called" "#compdef $called"
        has "/usr/share/fish/vendor_completions.d/$called.fish" "complete -c $called"
        has "/usr/share/man/man1/$called.1.gz" ".TH $called 1"
    done
    has /usr/share/man/man1/ringleader-worker-join.1.gz "ringleader\\-worker join"
    has /usr/share/man/man1/ringleader-coordinator-local.1.gz "ringleader\\-coordinator local"
    echo "dist: the package has completions and manual pages by the names of its commands"
    rm -rf "$unpacked"
fi
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
