#!/usr/bin/env python3
"""Writes tests/reference/encodings: tensors of 4 and 8 bits with scales, and the numbers that they stand for.

    python3 tools/make_encodings.py OUT_FOLDER

Elements are random bits. What they stand for is computed with torch's own 8-bit types in float64, and for 4 bits with the conversion that
Hugging Face transformers applies to published checkpoints. Needs torch, transformers, safetensors.
"""

import json
import sys
from pathlib import Path

try:
    import torch
    from safetensors.torch import save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
except ImportError as error:
    sys.exit(f"{error}: pip install torch transformers safetensors")


def bits(shape, dtype):
    """Random elements of an 8-bit type, those that are no numbers left out."""
    drawn = torch.randint(0, 256, shape, dtype=torch.uint8).view(dtype)
    zero = torch.zeros((), dtype=torch.uint8).view(dtype)
    return torch.where(torch.isfinite(drawn.to(torch.float32)), drawn, zero)


def scaled(elements, scales, blocks):
    """Each element times the scale of its block, rounded once."""
    scales = scales.to(torch.float64)
    for dim, block in enumerate(blocks):
        scales = scales.repeat_interleave(block, dim=dim)
    scales = scales[tuple(slice(0, n) for n in elements.shape)]
    return (elements.to(torch.float64) * scales).to(torch.float32)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    torch.manual_seed(11)
    stored, expected = {}, {}

    def add(name, elements, scales, suffix, blocks):
        stored[f"{name}.weight"] = elements
        stored[f"{name}.weight{suffix}"] = scales
        grid = scales.reshape(scales.shape if scales.dim() == 2 else (-1, 1)).to(torch.float64)
        expected[f"{name}.weight"] = scaled(elements, grid, blocks)

    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    # Blocks of 128 by 128, of which the last are smaller.
    add("blocks", bits((140, 136), e4m3), 0.001 * torch.rand(2, 2) + 1e-4, "_scale_inv", (128, 128))
    add("tensor", bits((9, 136), e4m3), torch.tensor(0.0123), "_scale", (9, 136))
    add("channel", bits((9, 136), e4m3), torch.rand(9, 1, dtype=torch.bfloat16), "_scale", (1, 136))
    exponents = torch.randint(120, 135, (9, 17), dtype=torch.uint8)
    stored["exponents.weight"], stored["exponents.weight_scale"] = bits((9, 136), e5m2), exponents
    powers = torch.exp2(exponents.to(torch.float64) - 127)
    expected["exponents.weight"] = scaled(stored["exponents.weight"], powers, (1, 8))
    # Three matrices of 8 rows: two groups of 32 numbers a row, two numbers a byte, stored with rows and columns exchanged.
    pairs = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 8, 2), dtype=torch.uint8)
    stored["experts_blocks"], stored["experts_scales"] = pairs, scales
    experts = convert_moe_packed_tensors(pairs, scales, dtype=torch.float32)
    assert experts.shape == (3, 64, 8), experts.shape
    for i in range(3):
        expected[f"experts.{i}.weight"] = experts[i].T.contiguous()
    assert all(torch.isfinite(x).all() for x in expected.values())

    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors")
    save_file(expected, folder / "expected.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (folder / "config.json").write_text(json.dumps(config) + "\n")


if __name__ == "__main__":
    main()
