#!/usr/bin/env python3
"""Computes tests/reference/rotary.json again: rotary positions as Hugging Face transformers turns them.

    python tools/make_rotary.py [--check] [FILE]

A case of the file says `rope` (config.json's mapping), `pairs`, `width` and, where it is another than the mapping's, `length`: the context that is declared. Everything else of it is
computed here, so that a new case is an entry with these and a run. `--check` writes nothing and fails where numbers of the file are others.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

torch.set_num_threads(1)
TOLERANCE = 1e-6


def declared_length(rope, length):
    """What transformers would see as the length of a sequence that fills the declared context."""
    if length is not None:
        return length
    longest, trained = rope.get("max_position_embeddings"), rope.get("original_max_position_embeddings")
    if longest is not None and trained is not None:
        return longest
    return int(rope["factor"] * (trained or longest)) if rope["rope_type"] == "dynamic" else None


def frequencies(rope, width, length):
    """Radians a position of each pair, and what cosines and sines are multiplied by."""
    kind = rope["rope_type"]
    if kind == "default":
        n = int(width * rope.get("partial_rotary_factor", 1.0))
        return 1.0 / (rope["rope_theta"] ** (torch.arange(0, n, 2, dtype=torch.int64).float() / n)), 1.0
    keys = {key: value for key, value in rope.items() if key != "max_position_embeddings"}
    # Dynamic frequencies are stretched from the length of training, the others know the longest too.
    longest = rope.get("max_position_embeddings", rope.get("original_max_position_embeddings", 64))
    if kind == "dynamic":
        longest = rope.get("original_max_position_embeddings", longest)
    config = LlamaConfig(hidden_size=width, num_attention_heads=1, head_dim=width, max_position_embeddings=longest, rope_parameters=keys)
    return ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=declared_length(rope, length))


def turned(x, inv_freq, gain, position, pairs):
    """One vector at one position."""
    n = 2 * len(inv_freq)
    angle = position * inv_freq.double()
    cos, sin = gain * angle.cos(), gain * angle.sin()
    y = x.clone()
    first, second = (slice(0, n // 2), slice(n // 2, n)) if pairs == "halves" else (slice(0, n, 2), slice(1, n, 2))
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[second] * cos + x[first] * sin
    return y


def attention_scale(rope, width):
    """Scores of heads of that width are multiplied by it: DeepSeek's rule where a mapping has mscale_all_dim."""
    sharpened = rope.get("mscale_all_dim", 0)
    scale = 0.1 * sharpened * math.log(rope["factor"]) + 1.0 if sharpened else 1.0
    return width**-0.5 * scale * scale


def rounded(values):
    return [float(f"{v:.9g}") for v in values]


def computed(case, x, positions):
    rope, width = case["rope"], case["width"]
    inv_freq, gain = frequencies(rope, width, case.get("length"))
    rows = [rounded(turned(x, inv_freq, gain, p, case["pairs"]).tolist()) for p in positions]
    said = {key: case[key] for key in ("name", "rope", "pairs", "width", "length") if key in case}
    return {**said, "inv_freq": rounded(inv_freq.tolist()), "gain": rounded([gain])[0], "rows": rows, "attention_scale": attention_scale(rope, width)}


def largest_difference(a, b):
    if isinstance(a, list):
        return max((largest_difference(u, v) for u, v in zip(a, b, strict=True)), default=0.0)
    return abs(a - b)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).parent.parent / "tests/reference/rotary.json")
    args = parser.parse_args()
    data = json.loads(args.file.read_text())
    x = torch.tensor(data["x"], dtype=torch.float64)
    cases = [computed(case, x, data["positions"]) for case in data["cases"]]
    if args.check:
        keys = ("inv_freq", "gain", "rows", "attention_scale")
        differ = [new["name"] for old, new in zip(data["cases"], cases) if any(key not in old or largest_difference(old[key], new[key]) > TOLERANCE for key in keys)]
        print(f"{len(cases)} cases; {', '.join(differ) or 'none'} differ")
        sys.exit(bool(differ))
    head = json.dumps({"transformers": transformers.__version__, "positions": data["positions"], "x": data["x"]})
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    args.file.write_text(f'{head[:-1]},\n "cases": [\n{lines}\n ]}}\n')


if __name__ == "__main__":
    main()
