"""The strip as one picture: images with their scales above, the rewards' curves beneath the columns they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from draft.evaluation.svg import short
from draft.strips.charts import PAPER, Colours, draw_curve, draw_grid
from draft.strips.results import Strip

SMALLEST, LARGEST = 96, 256
"""Sides of the images on the sheet, in pixels: smaller ones are enlarged by whole factors, larger ones shrunk."""
_GAP, _LINE, _SIDE, _CHART, _DPI = 6, 20, 150, 150, 100


def draw_sheet(strip: Strip, pictures: Sequence[Sequence[Path]]) -> Image.Image:
    """Lay a strip out: one row of images per prompt and seed, or one grid where there are two adapters.

    Args:
        strip: What was found.
        pictures: For each cell the image files of its rows.

    Returns:
        The picture, on white.
    """
    columns = len(strip.settings.scales)
    lines = len(strip.cells) // columns
    with Image.open(pictures[0][0]) as first:
        width, height = (round(side * _factor(max(first.size))) for side in first.size)
    left, block = _GAP + _SIDE, _LINE * (lines > 1) + lines * (height + _GAP)
    chart = _CHART if lines == 1 else 56 + 28 * lines
    top = 2 * _LINE + _GAP
    total = top + len(strip.seeds) * (block + _GAP * (lines > 1)) + (chart + _GAP) * len(strip.scores) + _LINE
    sheet = Image.new("RGB", (left + columns * (width + _GAP), total), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 12)

    def write(x: int, y: int, text: str, colour: str, room: int) -> None:
        while len(text) > 1 and draw.textlength(text, font=font) > room:
            text = text[:-2].rstrip() + "…"
        draw.text((x, y), text, fill=colour, font=font)

    across = f"across: scale of {strip.labels[0]}" + (f", down: of {strip.labels[1]}" if lines > 1 else "")
    write(_GAP, _GAP, f"{strip.title or 'Strip'} · {strip.model} · {across}", PAPER.ink, sheet.width - 2 * _GAP)
    for column, scale in enumerate(strip.settings.scales):
        write(left + column * (width + _GAP), _LINE + _GAP, f"{scale:g}", PAPER.faint, width)
    y = top
    for row, (prompt, seed) in enumerate(zip(strip.prompts, strip.seeds, strict=True)):
        for number, text in enumerate(_wrapped(prompt, draw, font, _SIDE - _GAP)):
            write(_GAP, y + number * 15, text, PAPER.ink, _SIDE - _GAP)
        write(_GAP, y + len(_wrapped(prompt, draw, font, _SIDE - _GAP)) * 15, f"seed {seed}", PAPER.faint, _SIDE)
        y += _LINE * (lines > 1)
        for line in range(lines):
            if lines > 1:
                write(left - 44, y + height // 2 - 8, f"{strip.settings.scales_b[line]:g}", PAPER.faint, 40)
            for column in range(columns):
                picture = _picture(pictures[line * columns + column][row], width, height)
                sheet.paste(picture, (left + column * (width + _GAP), y))
            y += height + _GAP
        y += _GAP * (lines > 1)
    for label in strip.scores:
        image = _chart(strip, label, (sheet.width, chart), left, columns * (width + _GAP) - _GAP, width)
        sheet.paste(image, (0, y))
        y += chart + _GAP
    return sheet


def _factor(side: int) -> float:
    return -(-SMALLEST // side) if side < SMALLEST else min(1.0, LARGEST / side)


def _picture(file: Path, width: int, height: int) -> Image.Image:
    with Image.open(file) as picture:
        kind = Image.Resampling.NEAREST if picture.width <= width else Image.Resampling.LANCZOS
        return picture.convert("RGB").resize((width, height), kind)


def _wrapped(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """A prompt in at most three lines."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= room or not lines[-1]:
            lines[-1] = longer
        elif len(lines) == 3:
            lines[-1] = f"{lines[-1]} …"
            break
        else:
            lines.append(word)
    return lines


def _chart(strip: Strip, label: str, size: tuple[int, int], left: int, wide: int, column: int) -> Image.Image:
    """One reward's chart, its columns beneath those of the images."""
    with rc_context(_look(PAPER)):
        figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI)
        room = (left / size[0], 26 / size[1], wide / size[0], 1 - 52 / size[1])  # for the scales and the title
        axes = figure.add_axes(room)
        axes.set_title(short(label, 60), fontsize=10)
        if len(strip.labels) == 1:
            places = [index * (column + _GAP) + column / 2 for index in range(len(strip.cells))]
            draw_curve(axes, strip, label, places, PAPER)
            axes.set_xlim(0, wide)
            axes.set_xticks(places, [f"{cell[0]:g}" for cell in strip.cells])
        else:
            draw_grid(axes, strip, label, PAPER)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")


def _look(colours: Colours) -> dict[Any, Any]:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.0,
        "axes.titlelocation": "left",
        "axes.titlecolor": colours.ink,
        "axes.edgecolor": colours.line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": colours.line,
        "ytick.color": colours.line,
        "xtick.labelcolor": colours.faint,
        "ytick.labelcolor": colours.faint,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
    }
