"""Record in `vendi.json` what the published package `vendi-score` says of the pictures below.

The numbers come from its `image_utils.pixel_vendi_score` itself. It needs an environment of
its own, which Draft's tests never need:

    pip install --no-deps vendi-score==0.0.3
    pip install scikit-learn pillow
    python tests/golden/record_vendi.py

`image_utils` imports torch, torchvision and matplotlib for its other functions; `main` puts empty modules there.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
from PIL import Image

FILE = Path(__file__).with_name("vendi.json")
HEIGHT, WIDTH = 61, 83


def pictures() -> list[np.ndarray]:
    """Blocks of colour from whole numbers, the same everywhere; one of them again, darker: uint8 (61, 83, 3)."""
    rows, columns, colours = np.meshgrid(
        np.arange(HEIGHT) * 4 // HEIGHT, np.arange(WIDTH) * 4 // WIDTH, np.arange(3), indexing="ij"
    )
    made = []
    for seed in range(6):
        cells = ((rows * 4 + columns) * 3 + colours + 48 * seed).astype(np.uint32)
        made.append(((cells * np.uint32(2654435761)) >> np.uint32(24)).astype(np.uint8))
    return [*made, made[-1] // 4 * 3]


def main() -> None:
    """Record."""
    import vendi_score.vendi  # noqa: F401  (with it scipy, which looks for torch)

    parts = ("", ".models", ".transforms", ".transforms.functional")
    empty = ["torch", "matplotlib", *(f"torchvision{part}" for part in parts)]
    sys.modules |= {name: MagicMock() for name in empty}
    from vendi_score import image_utils

    for name in empty:
        del sys.modules[name]
    images = [Image.fromarray(picture) for picture in pictures()]
    recorded = {
        "versions": {name: version(name) for name in ("vendi-score", "numpy", "scipy", "pillow")},
        "all": float(image_utils.pixel_vendi_score(images)),
        "first two": float(image_utils.pixel_vendi_score(images[:2])),
        "last two": float(image_utils.pixel_vendi_score(images[-2:])),
    }
    FILE.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
