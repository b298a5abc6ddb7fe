#!/usr/bin/env bash
# Tests or times on the GPU of this machine what xfc compiles for it (make test-cuda, make bench-cuda).
#
#   tools/cuda/cuda.sh check|bench [ARGUMENT...]      arguments of check.py or bench.py
#
# Where there is Rust, the kit is built first; elsewhere (a machine with a GPU and little else) the one that was carried to target/cuda-kit is taken.
# XFC_CUDA_KIT names another folder, in which nothing is built.
set -euo pipefail
cd "$(dirname "$0")/../.."

what=${1:?check or bench}
shift
kit=${XFC_CUDA_KIT:-target/cuda-kit}
if [ -z "${XFC_CUDA_KIT:-}" ] && command -v cargo >/dev/null; then
  # Whether there is a GPU is known before much is compiled for it.
  cargo build --quiet --release --bin xfrun -p xfc-runtime
  if [ $# -eq 0 ] && { code=0; "${CARGO_TARGET_DIR:-target}/release/xfrun" devices >/dev/null 2>&1 || code=$?; [ "$code" = 4 ]; }; then
    echo 'skipped: no CUDA device'
    exit 0
  fi
  tools/setup.sh
  tools/cuda/kit.sh -o "$kit"
fi
[ -e "$kit/xfrun" ] || {
  echo "There is no $kit here, and no cargo to build it with: run tools/cuda/kit.sh on a machine with Rust, and copy the folder here." >&2
  exit 1
}
exec python3 "$kit/$what.py" "$@"
