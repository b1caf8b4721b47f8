"""A small model with ImageReward's tensors, and pictures and prompts for it, which `record_image_reward.py` records."""

from __future__ import annotations

import re

import torch

SIDE, PATCH, WIDTH, LAYERS = 32, 8, 128, 2
ROW = 11
"""The row of the preprocessed pictures that is recorded, in levels of 8 bits."""
# Margins of 1, 3, 5 and 7 pixels after resizing tell how the crop rounds.
SIZES = [(32, 32), (61, 37), (33, 32), (32, 35), (37, 32), (32, 39), (200, 300), (20, 18), (9, 131)]
PROMPTS = [
    "a cat",
    "A painting of an ocean with clouds and birds, day time, low depth field effect",
    "",
    "caf\u00e9 UPPER lower; 3.14 (nested)!",
    "a dog and a fox on a very long bench",
]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;!()-"
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *CHARACTERS,
    *(f"##{one}" for one in CHARACTERS),
    *("cat", "painting", "ocean", "clouds", "birds"),
]


def hashed(count: int, start: int) -> torch.Tensor:
    """Numbers like random ones in [-1, 1), from whole numbers alone and so the same everywhere: float64 (count,)."""
    x = (torch.arange(start, start + count) * 0x9E3779B1) & 0xFFFFFFFF
    for shift, factor in ((15, 0x85EBCA77), (13, 0xC2B2AE3D)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return ((x ^ (x >> 16)).double() - 2**31) / 2**31


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Blocks of five pixels with grain on them: uint8 (3, height, width)."""
    rows, columns = torch.arange(height) // 5, torch.arange(width) // 5
    blocks = hashed(3 * 10_000, 50_000 * seed).view(3, -1)[:, rows[:, None] * 100 + columns]
    grain = hashed(3 * height * width, 900_000 + seed).view(3, height, width)
    return ((0.8 * blocks + 0.2 * grain) * 127.5 + 127.5).long().to(torch.uint8)


def weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights for a model whose tensors have these names and shapes, so that prompts and pictures make a difference."""
    tensors, start = {}, 0
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            tensors[name] = torch.arange(shape[-1]).expand(shape).clone()
            continue
        count = int(torch.tensor(shape).prod())
        values = hashed(count, start).view(shape)
        start += count
        if re.search(r"(norm\d?|LayerNorm)\.weight", name):
            values = 1 + 0.3 * values
        elif len(shape) == 1:
            values = 0.3 * values
        elif "embed" not in name and "token" not in name:
            values = values * 2.5 / (count / shape[0]) ** 0.5
        tensors[name] = values.float()
    return tensors
