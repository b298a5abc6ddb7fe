#!/usr/bin/env python3
"""Writes tests/reference/gguf/blocks.gguf: a tensor of each block format of GGUF, and beside it the numbers that it stands for.

    python3 tools/make_blocks.py OUT_FILE

Blocks are random bits, but for their scales, which are finite; what they stand for is computed by the format's own Python package.
Needs numpy, gguf.
"""

import sys

try:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize
except ImportError as error:
    sys.exit(f"{error}: pip install numpy gguf")

# Where the f16 of a block lie.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
ROWS = 3


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    random = np.random.default_rng(7)
    writer = GGUFWriter(sys.argv[1], "blocks")
    for name, places in SCALES.items():
        kind = GGMLQuantizationType[name]
        elements, size = GGML_QUANT_SIZES[kind]
        per_row = 512 // elements
        blocks = random.integers(0, 256, (ROWS * per_row, size), dtype=np.uint8)
        for place in places:
            scales = random.normal(0, 0.05, len(blocks)).astype(np.float16)
            # Zero, the smallest, one that is subnormal, the largest.
            scales[:4] = np.array([0.0, 6e-8, -3e-5, 65504.0], dtype=np.float16)
            random.shuffle(scales)
            blocks[:, place:place + 2] = scales.view(np.uint8).reshape(-1, 2)
        rows = blocks.reshape(ROWS, per_row * size)
        expected = dequantize(rows, kind).astype(np.float32)
        assert expected.shape == (ROWS, 512) and np.isfinite(expected).all(), name
        writer.add_tensor(f"{name}.weight", rows, raw_dtype=kind)
        writer.add_tensor(f"{name}.expected", expected)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
