"""From the unpacked npm packages to the sprite sheet that ships with the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from draft_emoji.scenes import COLUMNS, SPRITE
from draft_emoji.vocabulary import entries


def prepare(sprites: Path, labels: Path, target: Path) -> None:
    """Write the sprite sheet: one square cell for each concept, in the vocabulary's order.

    Args:
        sprites: Folder ``assets`` of the unpacked npm package ``@lobehub/fluent-emoji-3d``.
        labels: File ``en/data.json`` of the unpacked npm package ``emojibase-data``; it says what a sprite shows.
        target: The WebP file to write.

    Raises:
        SystemExit: A concept's code points are not an emoji, or it has no sprite.
    """
    table = json.loads(labels.read_text("utf-8"))
    label_of = {row["hexcode"].lower().removesuffix("-fe0f"): row["label"] for row in table}
    rows = -(-len(entries()) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE))
    for number, entry in enumerate(entries()):
        label = label_of.get(entry.hexcode.removesuffix("-fe0f"))
        file = sprites / f"{entry.hexcode}.webp"
        if label is None or not file.exists():
            raise SystemExit(f"no sprite or no emoji for {entry.name!r} ({entry.hexcode})")
        if entry.name not in label:
            # To be read by a person when the vocabulary changes.
            print(f"{entry.name!r} shows what emojibase calls {label!r}")
        cell = _square(Image.open(file).convert("RGBA"))
        sheet.paste(cell, (number % COLUMNS * SPRITE, number // COLUMNS * SPRITE))
    sheet.save(target, quality=88, method=6, exact=False)
    print(f"{len(entries())} sprites, {target.stat().st_size / 1e6:.2f} MB: {target}")


def _square(image: Image.Image) -> Image.Image:
    """Cut the empty rim off and centre the object, so that a scene's box is the object's own size."""
    opaque = np.argwhere(np.asarray(image)[..., 3] > 16)
    top, left = (int(least) for least in opaque.min(0))
    bottom, right = (int(most) + 1 for most in opaque.max(0))
    side = max(right - left, bottom - top)
    square = Image.new("RGBA", (side, side))
    square.paste(image.crop((left, top, right, bottom)), ((side - right + left) // 2, (side - bottom + top) // 2))
    return square.resize((SPRITE, SPRITE), Image.Resampling.LANCZOS)
