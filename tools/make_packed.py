#!/usr/bin/env python3
"""Writes tests/reference/packed: matrices of integers in words, as tools that quantise write them, and the numbers that they stand for.

    python3 tools/make_packed.py OUT_FOLDER

Integers, scales and zeros are random. `weight_packed` is written by the package compressed-tensors; `qweight` and `qzeros` as GPTQ writes them
(words of eight inputs, zeros less one) and as AWQ does (words of eight outputs in turn). Needs torch, safetensors, compressed-tensors.
"""

import json
import sys
from pathlib import Path

try:
    import torch
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import pack_to_int32
    from safetensors.torch import save_file
except ImportError as error:
    sys.exit(f"{error}: pip install torch safetensors compressed-tensors")


def words(integers, bits, order=None):
    """Neighbours of a row in words, the first lowest, or in this order."""
    per = 32 // bits
    rows, columns = integers.shape
    parts = integers.to(torch.int64).reshape(rows, columns // per, per)
    parts = parts[:, :, order] if order else parts
    joined = sum(parts[:, :, at] << (at * bits) for at in range(per))
    return torch.where(joined >= 2**31, joined - 2**32, joined).to(torch.int32).contiguous()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    torch.manual_seed(12)
    stored, expected = {}, {}

    def drawn(outputs, inputs, groups, bits):
        integers = torch.randint(0, 2**bits, (outputs, inputs))
        scales = (0.01 * torch.rand(outputs, groups) + 1e-3).to(torch.float16)
        return integers, scales, torch.randint(1, 2**bits, (outputs, groups))

    def expect(name, integers, scales, zeros, index):
        numbers = (integers - zeros[:, index]).to(torch.float64) * scales.to(torch.float64)[:, index]
        expected[f"{name}.weight"] = numbers.to(torch.float32).contiguous()

    def gptq(name, outputs, inputs, group, bits, symmetric=False, shuffled=False):
        integers, scales, zeros = drawn(outputs, inputs, inputs // group, bits)
        if symmetric:
            zeros[:] = 2 ** (bits - 1)
        index = torch.arange(inputs) // group
        index = index[torch.randperm(inputs)] if shuffled else index
        stored[f"{name}.qweight"] = words(integers, bits).T.contiguous()
        stored[f"{name}.qzeros"] = words(zeros.T - 1, bits)
        stored[f"{name}.scales"] = scales.T.contiguous()
        stored[f"{name}.g_idx"] = index.to(torch.int32)
        expect(name, integers, scales, zeros, index)

    def awq(name, outputs, inputs, group):
        integers, scales, zeros = drawn(outputs, inputs, inputs // group, 4)
        turned = [0, 2, 4, 6, 1, 3, 5, 7]
        stored[f"{name}.qweight"] = words(integers.T, 4, turned)
        stored[f"{name}.qzeros"] = words(zeros.T, 4, turned)
        stored[f"{name}.scales"] = scales.T.contiguous()
        expect(name, integers, scales, zeros, torch.arange(inputs) // group)

    def packed(name, outputs, inputs, groups, bits, symmetric=False):
        integers, scales, zeros = drawn(outputs, inputs, groups, bits)
        half = 2 ** (bits - 1)
        scales = scales.to(torch.bfloat16)
        if symmetric:
            zeros[:] = half
        else:
            stored[f"{name}.weight_zero_point"] = pack_to_int32((zeros - half).to(torch.int8), bits, packed_dim=0)
        stored[f"{name}.weight_packed"] = pack_to_int32((integers - half).to(torch.int8), bits)
        stored[f"{name}.weight_scale"] = scales
        stored[f"{name}.weight_shape"] = torch.tensor([outputs, inputs])
        expect(name, integers, scales, zeros, torch.arange(inputs) // (inputs // groups))

    gptq("columns", 16, 256, 128, 4, symmetric=True)
    gptq("eight", 16, 128, 64, 8)
    gptq("shuffled", 16, 128, 32, 4, shuffled=True)
    awq("in_turn", 16, 128, 64)
    packed("rows", 16, 128, 4, 4, symmetric=True)
    packed("zeros", 16, 128, 2, 4)
    # No multiple of a word's integers.
    packed("odd", 10, 36, 1, 4, symmetric=True)
    packed("wide", 16, 128, 1, 8, symmetric=True)
    integers, scales, zeros = drawn(16, 128, 1, 8)
    stored["bytes.weight"], stored["bytes.weight_scale"] = (integers - 128).to(torch.int8), scales
    stored["bytes.weight_zero_point"] = (zeros - 128).to(torch.int8)
    expect("bytes", integers, scales, zeros, torch.zeros(128, dtype=torch.int64))

    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors")
    save_file(expected, folder / "expected.safetensors")
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    (folder / "config.json").write_text(json.dumps(config) + "\n")


if __name__ == "__main__":
    main()
