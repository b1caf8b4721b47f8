"""The picture grid that shows how a training changes a few fixed images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from draft.types import Images


def save_grid(images: Images, path: Path) -> None:
    """Write images as one PNG, left to right, top to bottom, in the squarest grid.

    Args:
        images: (B, 3, H, W) in [0, 1] on the CPU.
        path: The file; its folder is made if missing.
    """
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pixels = (images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for k in range(count):
        grid.paste(Image.fromarray(pixels[k]), (k % columns * width, k // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
