"""Pictures from images, saved and laid out: plain contact sheets, and sheets with text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil, sqrt
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def to_picture(image: Tensor) -> Image.Image:
    """An 8-bit picture of one image.

    Args:
        image: Float, shape (3, H, W), sRGB in [0, 1].

    Returns:
        The RGB picture, rounded to the nearest of 256 levels.
    """
    levels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(levels.cpu().numpy())


def save_pictures(pictures: Sequence[Image.Image], folder: Path, *, start: int = 0) -> list[Path]:
    """Save pictures losslessly as `0000.png`, `0001.png`, ...

    Args:
        pictures: In order.
        folder: Made if need be.
        start: The first one's number.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{start + index:04d}.png" for index in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file, optimize=False)
    return files


def contact_sheet(rows: Sequence[Sequence[Image.Image]], *, gap: int = 4, widest: int = 16) -> Image.Image:
    """Lay pictures out on white: one row per list, or, where there is one list alone, the squarest block.

    Args:
        rows: Pictures of one size.
        gap: Pixels between and around them.
        widest: Most pictures in a row; longer ones wrap.

    Returns:
        The sheet.
    """
    if len(rows) == 1:
        widest = min(widest, max(1, ceil(sqrt(len(rows[0])))))
    lines = [row[i : i + widest] for row in rows for i in range(0, len(row), widest)]
    columns = max(len(line) for line in lines)
    height = gap + len(lines) * (lines[0][0].height + gap)
    sheet = Sheet(lines[0][0].size, columns=columns, gap=gap, left=gap, height=height)
    for index, line in enumerate(lines):
        sheet.paste(line, gap + index * (sheet.cell[1] + gap))
    return sheet.picture


def fitted(size: tuple[int, int], smallest: int, largest: int) -> tuple[int, int]:
    """The size at which a picture is shown: small ones enlarged by whole factors, large ones shrunk.

    Args:
        size: Width and height in pixels.
        smallest: Least length of the longer side.
        largest: Its greatest length.

    Returns:
        Width and height.

    Example:
        >>> fitted((64, 32), 96, 256), fitted((512, 256), 96, 256)
        ((128, 64), (256, 128))
    """
    side = max(size)
    factor = -(-smallest // side) if side < smallest else min(1.0, largest / side)
    return round(size[0] * factor), round(size[1] * factor)


class Sheet:
    """A white picture with columns of pictures of one size, and text.

    Args:
        cell: Width and height at which each picture is shown.
        columns: How many next to each other.
        gap: Pixels between them.
        left: Pixels before the first column.
        height: The sheet's height.
        font_size: Of the text, in pixels.
    """

    def __init__(
        self,
        cell: tuple[int, int],
        *,
        columns: int,
        gap: int,
        left: int,
        height: int,
        font_size: int = 12,
    ) -> None:
        self.cell, self.gap, self.left = cell, gap, left
        self.picture = Image.new("RGB", (left + columns * (cell[0] + gap), height), "white")
        self._draw, self._font = ImageDraw.Draw(self.picture), _font(font_size)

    def x(self, column: int) -> int:
        """The left edge of a column."""
        return self.left + column * (self.cell[0] + self.gap)

    def paste(self, pictures: Sequence[Image.Image], y: int) -> None:
        """Put a line of pictures on the sheet.

        Args:
            pictures: One per column, of any size.
            y: The line's upper edge.
        """
        for column, picture in enumerate(pictures):
            kind = Image.Resampling.NEAREST if picture.width <= self.cell[0] else Image.Resampling.LANCZOS
            self.picture.paste(picture.convert("RGB").resize(self.cell, kind), (self.x(column), y))

    def write(self, x: int, y: int, text: str, *, colour: str, room: int | None = None) -> None:
        """Write one line; what does not fit ends in an ellipsis.

        Args:
            x: Its left edge.
            y: Its upper edge.
            text: The line.
            colour: A colour's name or `#rrggbb`.
            room: Most pixels it may take; None: as far as the sheet goes.
        """
        room = self.picture.width - x if room is None else room
        while len(text) > 1 and self._width(text) > room:
            text = text[:-2].rstrip() + "…"
        self._draw.text((x, y), text, fill=colour, font=self._font)

    def wrapped(self, text: str, room: int, *, most: int = 3) -> list[str]:
        """Break a text at its spaces.

        Args:
            text: The text.
            room: Most pixels a line may take; a longer word gets a line of its own.
            most: Most lines; an ellipsis ends the last one where there is more.

        Returns:
            At least one line.
        """
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if self._width(longer) <= room or not lines[-1]:
                lines[-1] = longer
            elif len(lines) == most:
                lines[-1] = f"{lines[-1]} …"
                break
            else:
                lines.append(word)
        return lines

    def _width(self, text: str) -> float:
        return self._draw.textlength(text, font=self._font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings it; Pillow's own has the letters of Latin-1 alone.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
