#!/usr/bin/env bash
# Puts libtorch in place and tells cargo where it is.
#
#   scripts/libtorch.sh                    find or fetch libtorch, write .cargo/config.toml
#   scripts/libtorch.sh cpu|cuda [VERSION]  fetch this one, and print its folder
#
# The order: $LIBTORCH if set; a copy in the user's cache directory; the torch
# wheel by pip; the official zip where pip is missing. Nothing is installed
# outside the cache directory, and nothing is asked.
set -euo pipefail

cd "$(dirname "$0")/.."
wanted=${1:-}
version=${2:-2.9.0}
cudart=nvidia-cuda-runtime-cu12==12.8.90
cupti=nvidia-cuda-cupti-cu12==12.8.90
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ringleader

say() { printf 'libtorch: %s\n' "$*" >&2; }
fail() { printf 'libtorch: error: %s\n' "$*" >&2; exit 1; }

# Records the place for every later cargo command in this checkout. An
# exported LIBTORCH still wins, because cargo's [env] does not override it.
record() {
    if [ -n "$wanted" ]; then
        printf '%s\n' "$1"
        return
    fi
    mkdir -p .cargo
    # Several of these scripts may run at once.
    local new
    new=$(mktemp .cargo/config.XXXXXX)
    printf '# Written by scripts/libtorch.sh; an exported LIBTORCH overrides it.\n[env]\nLIBTORCH = "%s"\n' "$1" > "$new"
    chmod 644 "$new"
    if cmp -s "$new" .cargo/config.toml; then rm "$new"; else mv "$new" .cargo/config.toml; fi
    say "using $1"
}

has_libtorch() { [ -e "$1/lib/libtorch_cpu.so" ] && [ -d "$1/include/torch" ]; }

if [ -z "$wanted" ] && [ -n "${LIBTORCH:-}" ]; then
    has_libtorch "$LIBTORCH" || fail "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so and include/torch; unset it to fetch a copy"
    record "$LIBTORCH"
    exit 0
fi

if [ -n "$wanted" ]; then
    kind=$wanted
elif [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; then
    kind=cuda
else
    kind=cpu
fi
place=$cache/libtorch-$version-$kind
if [ -e "$place/.complete" ] && has_libtorch "$place"; then
    record "$place"
    exit 0
fi

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
    fail "no prebuilt copy for $(uname -s) $(uname -m): install libtorch $version, export LIBTORCH=its folder, or build with 'make FLEX=1'"
command -v python3 >/dev/null || fail "python3 is needed to unpack libtorch (apt-get install python3 python3-pip)"
mkdir -p "$cache"
work=$(mktemp -d "$cache/.libtorch.XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ -n "${PYTHON:-}" ]; then python=$PYTHON; else python=python3; fi
if "$python" -m pip --version >/dev/null 2>&1; then
    say "fetching the torch $version wheel (0.9 GB, once; kept in $place)"
    deps=(--no-deps)
    packages=("torch==$version")
    if [ $kind = cuda ]; then deps=(); else packages+=("$cudart" "$cupti"); fi
    # The wheel of any CPython has the same lib and include folders, so a Python
    # without a torch wheel of its own still serves. A wheel is built for one of the
    # versions of glibc up to 2.28, and pip takes those that are named, and no older ones.
    platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64 --platform any)
    for minor in $(seq 5 28); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
    "$python" -m pip download --disable-pip-version-check "${deps[@]}" --dest "$work/wheels" \
        --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
        "${platforms[@]}" "${packages[@]}" >&2 ||
        fail "pip could not download torch $version; check the network, or export LIBTORCH=a folder with libtorch $version"
else
    say "pip is missing: fetching the official zip"
    flavour=cpu; [ $kind = cuda ] && flavour=cu128
    command -v curl >/dev/null || fail "neither pip nor curl is there (apt-get install python3-pip)"
    mkdir -p "$work/wheels"
    curl --fail --location --progress-bar -o "$work/wheels/libtorch.zip" \
        "https://download.pytorch.org/libtorch/$flavour/libtorch-shared-with-deps-$version%2B$flavour.zip" ||
        fail "could not download the libtorch zip; install pip, or export LIBTORCH=a folder with libtorch $version"
fi

say "unpacking"
"$python" - "$work/wheels" "$work/libtorch" "$kind" <<'PY'
import os, pathlib, shutil, sys, zipfile

wheels, out, kind = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
CPU_LIBS = {"libtorch_cpu.so", "libc10.so"}


def place(name):
    """Where a member of a wheel or of the official zip goes; None to leave it out."""
    parts = pathlib.PurePosixPath(name).parts
    if name.endswith("/") or not parts:
        return None
    if parts[0] in ("torch", "libtorch") and len(parts) > 2 and parts[1] in ("lib", "include"):
        wanted = parts[1] == "include" or kind == "cuda" or parts[-1] in CPU_LIBS or ".so." in parts[-1] or "gomp" in parts[-1]
        return pathlib.Path(*parts[1:]) if wanted else None
    # What may be passed on must be passed on with it.
    if parts[0].startswith("torch-") and parts[0].endswith(".dist-info") and parts[-1] in ("LICENSE", "NOTICE"):
        return pathlib.Path(parts[-1])
    # torch's wheel looks for its CUDA libraries by ../../nvidia/*/lib; here all lie side by side.
    if parts[0] == "nvidia" and "lib" in parts and ".so" in parts[-1]:
        if kind == "cuda" or parts[-1] in ("libcudart.so.12", "libcupti.so.12"):
            return pathlib.Path("lib", parts[-1])
    return None


for wheel in sorted(wheels.iterdir()):
    if wheel.suffix not in (".whl", ".zip"):
        continue
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            target = place(name)
            if target is None:
                continue
            target = out / target
            target.parent.mkdir(parents=True, exist_ok=True)
            with z.open(name) as src, open(target, "wb") as dst:
                shutil.copyfileobj(src, dst, 1 << 20)
if kind == "cpu":
    link = out / "lib" / "libtorch.so"
    if not link.exists():
        os.symlink("libtorch_cpu.so", link)
PY
has_libtorch "$work/libtorch" || fail "the download holds no libtorch; remove $cache and try again"
printf '%s\n' "$version" > "$work/libtorch/build-version"
touch "$work/libtorch/.complete"
rm -rf "$place"
mv "$work/libtorch" "$place"
record "$place"
