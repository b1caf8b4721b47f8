"""Contact sheets: pictures in a grid with their prompts beneath."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CAPTION = 26
"""Height of the two lines of text beneath a picture, in pixels."""


def contact_sheet(images: np.ndarray, captions: list[str], target: Path, columns: int = 8, zoom: int = 2) -> None:
    """Write a PNG or WebP of captioned pictures.

    Args:
        images: RGB, uint8, shape (n, height, width, 3).
        captions: One for each picture; long ones are broken into two lines.
        target: The file to write.
        columns: Pictures in a row.
        zoom: Whole factor by which the pictures are enlarged.
    """
    side = images.shape[1] * zoom
    rows = -(-len(images) // columns)
    gap = 6
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + CAPTION + gap) + gap), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10.5)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = gap + number % columns * (side + gap)
        top = gap + number // columns * (side + CAPTION + gap)
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (left, top))
        for line, text in enumerate(_lines(caption, draw, font, side)):
            draw.text((left + 1, top + side + 1 + 12 * line), text, fill=(40, 40, 40), font=font)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A palette of 256 colours keeps a sheet of 64 small pictures well under 300 kB.
    sheet.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(target, optimize=True)


def _lines(
    caption: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> list[str]:
    """At most two lines that fit the width."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) > width and len(lines) < 2:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
