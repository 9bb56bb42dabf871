#!/usr/bin/env bash
# Checks for what the build needs. As root on a Debian-like system, installs what
# is missing; otherwise says exactly what to install.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v cc >/dev/null || missing+=(gcc)
command -v make >/dev/null || missing+=(make)
# What libjpeg-turbo is built with.
command -v cmake >/dev/null || missing+=(cmake)
if [ "$(uname -m)" = x86_64 ]; then command -v nasm >/dev/null || missing+=(nasm); fi
command -v python3 >/dev/null || missing+=(python3)
if command -v python3 >/dev/null && ! python3 -m pip --version >/dev/null 2>&1; then missing+=(python3-pip); fi

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing ${missing[*]}"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >&2
    else
        say "these are missing: ${missing[*]}"
        say "install them, for example with: sudo apt-get install ${missing[*]}"
        exit 1
    fi
fi

if ! command -v cargo >/dev/null; then
    say "cargo is missing: install Rust as https://rustup.rs says, then run this again"
    exit 1
fi
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
found=$(rustc --version | cut -d' ' -f2)
if ! printf '%s\n%s\n' "$wanted" "$found" | sort -V -C; then
    say "Rust $found is older than the $wanted that the project needs: run rustup update"
    exit 1
fi
