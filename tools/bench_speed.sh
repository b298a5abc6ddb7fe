#!/usr/bin/env bash
# How fast two decoders run in bf16 on this machine, with made-up weights, as shares of its limits (docs/measuring.md).
#
#   tools/bench_speed.sh [ARGUMENT...]     arguments of `xfc bench`, in place of: -p 512 -n 128 -t 1,ALL
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
XFC_COMMIT=${XFC_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || true)}
export XFC_COMMIT
cargo build --release --bins -p xfc-cli
threads=1,$(nproc)
[ "$threads" != 1,1 ] || threads=1
[ $# -gt 0 ] || set -- -p 512 -n 128 -t "$threads"

bench() {
  "$target/release/xfc" bench "$@" --dtype bf16 --checkpoint random
  printf '\n'
}
# 0.6 and 1.2 billion parameters.
bench qwen3 "$@"
bench llama --set vocab_size=128256 --set hidden_size=2048 --set intermediate_size=8192 --set num_hidden_layers=16 --set num_attention_heads=32 \
  --set num_key_value_heads=8 --set head_dim=64 --set tie_word_embeddings=true "$@"
