#!/usr/bin/env bash
# Fuzzes every decoder of bytes from the network or from disk.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]     60 seconds and all targets, if not told otherwise
#
# What is found lies in fuzz/artifacts/TARGET; `cargo +nightly fuzz run TARGET FILE`
# shows it again.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'fuzz: error: %s\n' "$*" >&2; exit 1; }

seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || fail "the first argument is a number of seconds, not \`$seconds\`"
shift || true
cargo +nightly --version >/dev/null 2>&1 || fail "a nightly compiler is needed: rustup toolchain install nightly"
cargo fuzz --version >/dev/null 2>&1 || fail "cargo-fuzz is needed: cargo install cargo-fuzz"

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo +nightly fuzz list)
# What to start from: valid examples of everything.
cargo run --quiet --release -p cluster-tests --bin seeds
cargo +nightly fuzz build
found=()
for target in "${targets[@]}"; do
    printf 'fuzz: %s for %s s\n' "$target" "$seconds" >&2
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=65536 \
        -print_final_stats=1 -verbosity=0 || found+=("$target")
done
[ ${#found[@]} -eq 0 ] || fail "something was found in: ${found[*]}"
printf 'fuzz: nothing was found in %s\n' "${targets[*]}" >&2
