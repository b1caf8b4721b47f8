"""A small model of ViT-H-14's architecture, pictures and prompts: what `hpsv2.json` was recorded from.

`record_hpsv2.py` recorded it. Weights and pictures are made from whole numbers, and so are the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import torch

SIDE = 42
MODEL: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
SIZES = [(42, 42), (61, 37), (40, 97), (300, 225), (20, 18), (9, 131), (131, 9), (1, 50), (43, 42), (257, 512)]
PROMPTS = [
    "A cat with two horns on its head",
    "a photo of a dog, 4k, highly detailed; trending on artstation!!",
    "",
    "it's the children's toys, they've said we'll see",
    "  several\tspaces \n and a line   ",
    "UPPER lower CamelCase snake_case 1234 3.14 #1 (nested [brackets])",
    "curly \u201cquotes\u201d and an artist\u2019s \u2018name\u2019 \u2014 an em dash \u2026",
    "caf\u00e9 cafe\u0301 na\u00efve stra\u00dfe \u00c5ngstr\u00f6m",
    "salt &amp; pepper &lt;3 &quot;quoted&quot; &amp;amp; &eacute;",
    "\ufb01ne \ufb02owers, \uff26\uff35\uff2c\uff2c\u3000width\uff01",
    "\u732b\u306e\u5199\u771f \u4e00\u53ea\u732b \ud55c\uad6d\uc5b4 \u0440\u0443\u0441\u0441\u043a\u0438\u0439",
    "\U0001f431 on \U0001f680\u2764\ufe0f",
    "a a a " * 40,
    "byte order mark\ufeff and a zero\u200bwidth space, a no\u00a0break space",
    "don't 'quote' rock'n'roll '90s",
]


def hashed(count: int, start: int) -> torch.Tensor:
    """Numbers that look random, in [-1, 1): float64 (count,)."""
    x = (torch.arange(start, start + count) * 0x9E3779B1) & 0xFFFFFFFF
    for shift, factor in ((15, 0x85EBCA77), (13, 0xC2B2AE3D)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return ((x ^ (x >> 16)).double() - 2**31) / 2**31


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Blocks of seven pixels with grain on them, which aliasing would change: uint8 (3, height, width)."""
    rows, columns = torch.arange(height) // 7, torch.arange(width) // 7
    grid = rows[:, None] * 100 + columns
    blocks = hashed(3 * 10_000, 50_000 * seed).view(3, -1)[:, grid]
    grain = hashed(3 * height * width, 900_000 + seed).view(3, height, width)
    return ((0.75 * blocks + 0.25 * grain) * 127.5 + 127.5).long().to(torch.uint8)


def checkpoint(shapes: dict[str, tuple[int, ...]]) -> OrderedDict[str, torch.Tensor]:
    """Weights in half precision for an open_clip CLIP whose tensors have these names and shapes."""
    weights, start = OrderedDict(), 0
    for name, shape in shapes.items():
        count = int(torch.tensor(shape).prod()) if shape else 1
        values = hashed(count, start).view(shape)
        start += count
        if "ln_" in name and name.endswith("weight"):
            values = 1 + 0.3 * values
        elif name == "logit_scale":
            values = 4.0 + values
        else:
            # Fresh networks are nearly constant functions; larger weights make images and texts differ.
            values = values * (0.2 if name.endswith("bias") else 1.0 if "embedding" in name else 0.35)
        weights[name] = values.half()
    return weights


def outline(shapes: dict[str, tuple[int, ...]]) -> str:
    """A digest of names and shapes, whatever their order."""
    return hashlib.sha256("\n".join(f"{name} {list(shapes[name])}" for name in sorted(shapes)).encode()).hexdigest()


def as_transformers(whole: dict[str, Any]) -> dict[str, Any]:
    """`MODEL` in the words of transformers' `CLIPConfig`.

    Args:
        whole: The full size, which says the rest: activations and special tokens.
    """
    vision, text = MODEL["vision_cfg"], MODEL["text_cfg"]
    sizes = {
        "vision": {"num_attention_heads": vision["width"] // vision["head_width"], "image_size": SIDE},
        "text": {"num_attention_heads": text["heads"]},
    }
    for name, tower in (("vision", vision), ("text", text)):
        sizes[name] |= {"hidden_size": tower["width"], "intermediate_size": 4 * tower["width"]}
        sizes[name] |= {"num_hidden_layers": tower["layers"]}
    configs = {f"{name}_config": {**whole[f"{name}_config"], **sizes[name]} for name in sizes}
    return {"projection_dim": MODEL["embed_dim"], **configs}
