#!/usr/bin/env bash
# Prints where ptxas is, NVIDIA's assembler of PTX, downloading it first where it is not there yet: a wheel of 41 or 47 MB from PyPI, of which
# one file of 51 MB is kept outside the repository. It needs neither a GPU nor a driver.
#
#   tools/fetch_ptxas.sh         needs python3 with pip; XDG_CACHE_HOME moves the folder; XFC_PTXAS names one that is there already
set -euo pipefail

if [ -n "${XFC_PTXAS:-}" ]; then
  [ -x "$XFC_PTXAS" ] || { echo "XFC_PTXAS names no program: $XFC_PTXAS" >&2; exit 1; }
  echo "$XFC_PTXAS"
  exit
fi

# The suite's tests/src/ptxas.rs has the version too.
version=13.5.37
# For x86-64 and for AArch64.
sha256=(f5c4f7ead5d964fb4af42bbf1e6d3ec3c1e6e9d83b53749f691d387e7fcaa3a7 588eda18eb5076ae859fe272844b526459228af22df0b117f54eec3aa82bc9c8)
tools=${XDG_CACHE_HOME:-$HOME/.cache}/xfc/tools
ptxas=$tools/ptxas-$version

if [ ! -x "$ptxas" ]; then
  echo "Downloading ptxas $version (47 MB, PyPI package nvidia-cuda-nvcc)" >&2
  mkdir -p "$tools"
  work=$(mktemp -d -p "$tools")
  trap 'rm -rf "$work"' EXIT
  # pip refuses what has none of these hashes, and takes no other package along.
  echo "nvidia-cuda-nvcc==$version ${sha256[*]/#/--hash=sha256:}" >"$work/requirements.txt"
  if ! python3 -m pip download --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes --dest "$work" -r "$work/requirements.txt" >&2; then
    echo "ptxas could not be downloaded from PyPI (pip's message is above); there are wheels for Linux on x86-64 and AArch64." >&2
    echo "Elsewhere, or without a network: install ptxas $version with CUDA's toolkit, and set XFC_PTXAS to its path." >&2
    exit 1
  fi
  python3 -m zipfile -e "$work"/*.whl "$work/wheel"
  found=$(find "$work/wheel" -type f -name ptxas)
  [ -f "$found" ] || { echo "The wheel of nvidia-cuda-nvcc $version holds no ptxas." >&2; exit 1; }
  chmod +x "$found"
  "$found" --version | grep -q "V$version" || { echo "ptxas of nvidia-cuda-nvcc $version does not run here, or is another version." >&2; exit 1; }
  # Renamed into place, so that the file is whole or not there.
  mv -T "$found" "$ptxas"
fi
echo "$ptxas"
