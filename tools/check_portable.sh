#!/usr/bin/env bash
# Builds what must need no LLVM and no operating system: the language for WebAssembly; and looks at what the runtime depends on.
#
# Needs the target wasm32-unknown-unknown, which tools/setup.sh --lint adds where rustup can; without it, it says what was not checked, and
# fails in continuous integration (CI=true).
set -euo pipefail
cd "$(dirname "$0")/.."

for crate in xfc-lang xfc-runtime; do
  if found=$(cargo tree --package "$crate" --edges normal,build --prefix none | grep -E '^(melior|mlir-sys|inkwell|llvm-sys)'); then
    echo "$crate depends on LLVM: $found" >&2
    exit 1
  fi
done
if [ -d "$(rustc --print target-libdir --target wasm32-unknown-unknown)" ]; then
  cargo check --quiet --package xfc-lang --target wasm32-unknown-unknown
  echo 'portable: xfc-lang builds for wasm32-unknown-unknown; xfc-lang and xfc-runtime depend on no LLVM'
else
  echo 'portable: xfc-lang NOT BUILT for wasm32-unknown-unknown, which this Rust lacks (rustup target add wasm32-unknown-unknown)' >&2
  [ "${CI:-}" != true ]
fi
