#!/usr/bin/env bash
# The demo: models compiled by xfc and run by what xfc generated. `make demo` calls it.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '\n== %s\n' "$*" >&2; }

out=${CARGO_TARGET_DIR:-target}/demo
mkdir -p "$out"

[ -x "${CARGO_TARGET_DIR:-target}/release/xfc" ] || say "Building xfc (the first time takes a few minutes)"
cargo build --release --bins -p xfc-cli -p xfc-runtime
xfc=${CARGO_TARGET_DIR:-target}/release/xfc
xfrun=${CARGO_TARGET_DIR:-target}/release/xfrun

say "1. Compile: a card of the models folder and a checkpoint's config.json become one file"
"$xfc" compile examples/demo/dense -o "$out/dense.xfm"

say "2. Run: xfrun, which contains no compiler, loads the file, binds the checkpoint's weights and completes Python"
for prompt in 'def read_file(path):' 'import os
import sys

def main(args'; do
  "$xfrun" run "$out/dense.xfm" --checkpoint examples/demo/dense --temp 0.5 --top-k 40 --seed 1 -n 64 -p "$prompt"
  echo
done

say "3. Swap: a model of another architecture under the same xfrun. What differs:"
"$xfc" compare examples/demo/dense examples/demo/windowed
"$xfc" compile examples/demo/windowed -o "$out/windowed.xfm"
"$xfrun" run "$out/windowed.xfm" --checkpoint examples/demo/windowed --temp 0.5 --top-k 40 --seed 2 -n 64 -p 'def read_file(path):'
echo

say "4. Look: the model as a page for a browser, and what its caches keep"
"$xfc" inspect examples/demo/dense --format html -o "$out/dense.html"
"$xfc" inspect examples/demo/dense --cache
echo "$out/dense.html" >&2

say "5. Another kind of model: a real checkpoint that embeds sentences (downloaded once, 84 MB)"
checkpoint=$(tools/fetch_minilm.sh)
"$xfc" compile "$checkpoint" -o "$out/minilm.xfm"
"$xfrun" embed "$out/minilm.xfm" --checkpoint "$checkpoint" \
  -p "A man is eating food." \
  -p "Someone is having a meal." \
  -p "The girl is carrying a baby." \
  -p "What is the capital of France?" \
  -p "Paris has been the seat of the French government for centuries."
