#!/usr/bin/env bash
# The demo: a real checkpoint, compiled by xfc and run by what xfc generated. `make demo` calls it.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '\n== %s\n' "$*" >&2; }

checkpoint=$(tools/fetch_minilm.sh)
out=${CARGO_TARGET_DIR:-target}/demo
mkdir -p "$out"

[ -x "${CARGO_TARGET_DIR:-target}/release/xfc" ] || say "Building xfc (the first time takes a few minutes)"
cargo build --release --bins -p xfc-cli -p xfc-runtime
xfc=${CARGO_TARGET_DIR:-target}/release/xfc
xfrun=${CARGO_TARGET_DIR:-target}/release/xfrun

say "1. Compile: a card of the models folder and the checkpoint's config.json become one file"
"$xfc" compile "$checkpoint" -o "$out/minilm.xfm"

say "2. Run: xfrun, which contains no compiler, loads the file, binds the checkpoint's weights and embeds sentences"
"$xfrun" embed "$out/minilm.xfm" --checkpoint "$checkpoint" \
  -p "A man is eating food." \
  -p "Someone is having a meal." \
  -p "The girl is carrying a baby." \
  -p "What is the capital of France?" \
  -p "Paris has been the seat of the French government for centuries."

say "3. Look: the graph after fusion, one operation a kernel"
"$xfc" inspect "$checkpoint" --emit fused -o "$out/minilm.fused.xg"
echo "$out/minilm.fused.xg ($(wc -l <"$out/minilm.fused.xg") lines); a drawing: $xfc inspect $checkpoint --emit fused --format dot" >&2
