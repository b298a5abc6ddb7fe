#!/usr/bin/env python3
"""Writes tests/reference/images: small pictures, and the numbers that preprocessors make of them.

    python3 tools/make_images.py OUT_FOLDER

Each folder holds a preprocessor_config.json in a form that is published, and expected.safetensors: by file, what Pillow's resizing and cropping
and the config's scaling make of it, `[channels, height, width]` in float32. Needs pillow, numpy, safetensors.
"""

import json
import sys
from pathlib import Path

try:
    import numpy as np
    from PIL import Image
    from safetensors.numpy import save_file
except ImportError as error:
    sys.exit(f"{error}: pip install pillow numpy safetensors")

CONFIGS = {
    # An edge of one length, as older files write it; everything else left to what is usual.
    "square": {"do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": 24},
    # The shorter edge, then the middle.
    "cropped": {
        "do_center_crop": True, "crop_size": {"height": 20, "width": 20}, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 23},
    },
    "nearest": {"do_normalize": False, "do_resize": True, "resample": 0, "size": {"height": 40, "width": 17}},
}


def photo():
    """A picture with slopes, an edge and a little noise: 37 pixels high, 53 wide."""
    y, x = np.mgrid[0:37, 0:53]
    noise = np.random.default_rng(5).integers(0, 24, (37, 53, 3))
    red, green = 4 * x, 6 * y
    blue = np.where((x - 26) ** 2 + (y - 18) ** 2 < 120, 230, 30)
    return np.clip(np.stack([red, green, blue], axis=-1) + noise, 0, 255).astype(np.uint8)


def prepared(image, config):
    size = config["size"]
    size = {"height": size, "width": size} if isinstance(size, int) else size
    width, height = image.size
    if "shortest_edge" in size:
        short, edge = min(width, height), size["shortest_edge"]
        size = {"height": int(edge * height / short), "width": int(edge * width / short)}
    image = image.resize((size["width"], size["height"]), resample=config.get("resample", 2))
    values = np.asarray(image).astype(np.float64)
    if config.get("do_center_crop"):
        crop = config["crop_size"]
        top, left = (values.shape[0] - crop["height"]) // 2, (values.shape[1] - crop["width"]) // 2
        values = values[top : top + crop["height"], left : left + crop["width"]]
    values = values * config.get("rescale_factor", 1 / 255)
    if config["do_normalize"]:
        values = (values - np.array(config["image_mean"])) / np.array(config["image_std"])
    return np.ascontiguousarray(values.transpose(2, 0, 1)).astype(np.float32)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pixels = photo()
    Image.fromarray(pixels).save(folder / "photo.png")
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=90, subsampling=0)
    # Grey with a palette of few colours: read as colour all the same.
    Image.fromarray(pixels[:, :, 1]).convert("P").save(folder / "grey.png")
    for name, config in CONFIGS.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        (own / "preprocessor_config.json").write_text(json.dumps(config, indent=1) + "\n")
        files = ["photo.png", "photo.jpg", "grey.png"]
        save_file({file: prepared(Image.open(folder / file).convert("RGB"), config) for file in files}, own / "expected.safetensors")


if __name__ == "__main__":
    main()
