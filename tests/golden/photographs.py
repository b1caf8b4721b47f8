"""Photographs in the public domain that ship inside scikit-image, whole and cut to odd and extreme shapes."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

# As scikit-image documents: NASA's astronaut is in the public domain, coffee and cat are CC0 by their photographers.
FILES = {"astronaut": "astronaut.png", "coffee": "coffee.png", "cat": "chelsea.png"}
CUTS = {
    "astronaut": ("astronaut", slice(None), slice(None)),
    "coffee": ("coffee", slice(None), slice(None)),
    "cat": ("cat", slice(None), slice(None)),
    "odd": ("coffee", slice(50, 351), slice(91, 528)),
    "strip": ("coffee", slice(150, 190), slice(None)),
    "pillar": ("astronaut", slice(None), slice(240, 263)),
    "stamp": ("cat", slice(100, 161), slice(200, 237)),
}
"""Name to photograph, rows and columns: 512 x 512, 400 x 600, 300 x 451, 301 x 437, 40 x 600, 512 x 23 and 61 x 37."""

SQUARES = {
    "face": ("astronaut", slice(10, 234), slice(110, 334)),
    "cup": ("coffee", slice(100, 324), slice(200, 424)),
    "eyes": ("cat", slice(50, 274), slice(100, 324)),
}
"""Cuts of 224 x 224, which most networks take as they are."""


def photograph(name: str) -> np.ndarray:
    """One of `CUTS` or `SQUARES` as uint8 (H, W, 3)."""
    file, rows, columns = (CUTS | SQUARES)[name]
    spec = find_spec("skimage")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "data"
    with Image.open(folder / FILES[file]) as picture:
        return np.asarray(picture.convert("RGB"))[rows, columns].copy()


def digest(picture: np.ndarray) -> str:
    """The first 16 digits of a picture's SHA-256, to see that both sides look at the same pixels."""
    return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()[:16]
