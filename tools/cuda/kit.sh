#!/usr/bin/env bash
# Makes a folder that is all a machine with a GPU needs to test and time what xfc compiles for it: `xfrun`, artifacts, what they must compute, and the
# scripts that compare. There it needs Python 3 and a driver; no Rust, no network, nothing of CUDA.
#
#   tools/cuda/kit.sh [-o FOLDER] [--bin FOLDER] [--part test|bench]... [--case NAME]... [--for gpus|processors]
#
#   -o FOLDER      where to [default: target/cuda-kit]: a new one, or a kit, of which nothing stays but results.md
#   --bin FOLDER   take xfc and xfrun from there [default: build a release]
#   --part PART    only what tests, or what benchmarks need; may repeat
#   --case NAME    only this reference case; may repeat
#   --for KIND     only code for GPUs, or for processors: the latter tries the scripts
set -euo pipefail
cd "$(dirname "$0")/../.."

stop() { printf '%s\n' "$@" >&2; exit 1; }

out=target/cuda-kit bin= parts=() names=() kind=
while [ $# -gt 0 ]; do
  [ $# -gt 1 ] || stop "kit.sh: $1 wants a value, or is unknown"
  case $1 in
    -o) out=$2 ;;
    --bin) bin=$2 ;;
    --part) parts+=("$2") ;;
    --case) names+=("$2") ;;
    --for) kind=$2 ;;
    *) stop "kit.sh: unknown argument $1" ;;
  esac
  shift 2
done
[ ${#parts[@]} -gt 0 ] || parts=(test bench)
if [ -z "$bin" ]; then
  XFC_COMMIT=$(git rev-parse --short HEAD 2>/dev/null || true) cargo build --release --bins -p xfc-cli -p xfc-runtime
  bin=${CARGO_TARGET_DIR:-target}/release
fi

# Code for GPUs from 8.0 on and for 9.0 alone; in tests also for two kinds of processor, with which it is compared.
gpus=(--target cuda --target cuda:sm_90a)
processors=(--target cpu:x86-64-v3 --target cpu:x86-64)
case $kind in
  gpus) both=("${gpus[@]}") ;;
  processors) gpus=("${processors[@]}") both=("${processors[@]}") ;;
  '') both=("${gpus[@]}" "${processors[@]}") ;;
  *) stop "kit.sh: code is for gpus or for processors, not for $kind" ;;
esac

# Only what was made here before is thrown away, without the records of what was timed.
if [ -d "$out" ] && [ -n "$(ls -A "$out")" ] && [ ! -e "$out/about.json" ]; then
  stop "kit.sh: $out holds something else than a kit: give -o another folder"
fi
mkdir -p "$out"
find "$out" -mindepth 1 -maxdepth 1 ! -name results.md ! -name about.json -exec rm -rf {} +
cp "$bin/xfrun" "$out/xfrun"
strip "$out/xfrun" 2>/dev/null || true
# The oldest glibc that the runtime starts with, from the names of the versions that it asks for; none where it is linked statically.
glibc=$(grep -aoE 'GLIBC_2\.[0-9]+' "$out/xfrun" | sort -uV | tail -n 1 || true)
printf '{"commit": "%s", "made": "%s", "glibc": "%s"}\n' "$(git describe --always --dirty 2>/dev/null || true)" "$(date -u +%Y-%m-%d)" "${glibc#GLIBC_}" >"$out/about.json"
cp tools/cuda/*.py "$out"

# artifact FILE ARGUMENT...: PTX is text, of which a tenth remains.
artifact() {
  local file=$out/$1
  shift
  mkdir -p "$(dirname "$file")"
  "$bin/xfc" compile "$@" -o "$file" >"$out/log" 2>&1 || { cat "$out/log" >&2; stop "kit.sh: xfc compile $* failed"; }
  gzip -9 "$file"
}

for part in "${parts[@]}"; do
  case $part in
    test)
      [ ${#names[@]} -gt 0 ] || for case in tests/reference/cases/*/; do names+=("$(basename "$case")"); done
      for name in "${names[@]}"; do
        case=tests/reference/cases/$name
        mkdir -p "$out/cases/$name"
        cp "$case"/{config,case,params,inputs}.json "$case/golden.safetensors" "$out/cases/$name"
        artifact "cases/$name/f32.xfm" "$case" "${both[@]}"
        # Windows, latents, experts, scans: types of fewer bits, against processors.
        case $name in
          llama3 | gemma3 | deepseek_v3 | mixtral | qwen3_next)
            artifact "cases/$name/bf16.xfm" "$case" --dtype bf16 "${both[@]}"
            artifact "cases/$name/int8.xfm" "$case" --dtype bf16 --quant int8:g32 "${both[@]}"
            artifact "cases/$name/int4.xfm" "$case" --dtype bf16 --quant uint4:g32 "${both[@]}"
            artifact "cases/$name/int8-caches.xfm" "$case" --dtype bf16 --kv-cache-dtype int8 "${both[@]}"
            ;;
        esac
      done
      ;;
    bench)
      artifact bench/llama-8b-bf16.xfm llama --dtype bf16 "${gpus[@]}"
      artifact bench/llama-8b-int4.xfm llama --dtype bf16 --quant int4 "${gpus[@]}"
      artifact bench/qwen3-30b-a3b-bf16.xfm qwen3_moe --dtype bf16 "${gpus[@]}"
      # One dense layer and three of experts: 36 GB of weights.
      artifact bench/deepseek-v3-4-layers-bf16.xfm deepseek_v3 --set num_hidden_layers=4 --set first_k_dense_replace=1 --dtype bf16 "${gpus[@]}"
      ;;
    *) stop "kit.sh: there is no part $part" ;;
  esac
done
rm -f "$out/log"

[ "$(printf '%s\n' GLIBC_2.36 "$glibc" | sort -V | tail -n 1)" = GLIBC_2.36 ] ||
  echo "note: xfrun asks for $glibc; machines with an older one need a kit that was built on a system with glibc 2.36 or older" >&2
bytes=$(du -sb "$out" | cut -f1)
[ "$bytes" -le $((64 << 20)) ] || stop "$out has $bytes bytes, which is more than 64 MiB"
echo "$out: $((bytes >> 20)) MiB"
