#!/usr/bin/env bash
# How long every card takes to compile at its published size, cold, in a release build; and how large the artifact is.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
cargo build --release --bins -p xfc-cli
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

printf '%-16s %10s %12s\n' card seconds bytes
for card in models/*.yaml; do
  start=$(date +%s%N)
  XDG_CACHE_HOME=$work/cache "$target/release/xfc" compile "$card" -o "$work/out.xfm" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  end=$(date +%s%N)
  printf '%-16s %10s %12s\n' "$(basename "$card" .yaml)" "$(printf '%d.%03d' $(((end - start) / 1000000000)) $(((end - start) / 1000000 % 1000)))" "$(stat -c %s "$work/out.xfm")"
done
