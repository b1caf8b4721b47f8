"""The strip as one picture: images with their scales above, the rewards' curves beneath the columns they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from draft.report.charts import PAPER, paper_style, short
from draft.report.pictures import Sheet, fitted
from draft.strips.charts import draw_curve, draw_grid
from draft.strips.results import Strip

SMALLEST, LARGEST = 96, 256
"""Sides of the images on the sheet, in pixels: smaller ones are enlarged by whole factors, larger ones shrunk."""
_GAP, _LINE, _SIDE, _CHART, _DPI = 6, 20, 150, 150, 100


def draw_sheet(strip: Strip, pictures: Sequence[Sequence[Path]]) -> Image.Image:
    """Lay a strip out: one row of images per prompt and seed, or one grid where there are two adapters.

    Args:
        strip: What was drawn and scored.
        pictures: For each cell the image files of its rows.

    Returns:
        The picture, on white.
    """
    columns = len(strip.settings.scales)
    lines = len(strip.cells) // columns
    with Image.open(pictures[0][0]) as first:
        width, height = fitted(first.size, SMALLEST, LARGEST)
    left, block = _GAP + _SIDE, _LINE * (lines > 1) + lines * (height + _GAP)
    chart = _CHART if lines == 1 else 56 + 28 * lines
    top = 2 * _LINE + _GAP
    total = top + len(strip.seeds) * (block + _GAP * (lines > 1)) + (chart + _GAP) * len(strip.scores) + _LINE
    sheet = Sheet((width, height), columns=columns, gap=_GAP, left=left, height=total)

    across = f"across: scale of {strip.labels[0]}" + (f", down: of {strip.labels[1]}" if lines > 1 else "")
    title = f"{strip.title or 'Strip'} · {strip.model} · {across}"
    sheet.write(_GAP, _GAP, title, colour=PAPER.ink, room=sheet.picture.width - 2 * _GAP)
    for column, scale in enumerate(strip.settings.scales):
        sheet.write(sheet.x(column), _LINE + _GAP, f"{scale:g}", colour=PAPER.faint, room=width)
    y = top
    for row, (prompt, seed) in enumerate(zip(strip.prompts, strip.seeds, strict=True)):
        texts = sheet.wrapped(prompt, _SIDE - _GAP)
        for index, text in enumerate(texts):
            sheet.write(_GAP, y + index * 15, text, colour=PAPER.ink, room=_SIDE - _GAP)
        sheet.write(_GAP, y + len(texts) * 15, f"seed {seed}", colour=PAPER.faint, room=_SIDE)
        y += _LINE * (lines > 1)
        for line in range(lines):
            if lines > 1:
                scale = f"{strip.settings.scales_b[line]:g}"
                sheet.write(left - 44, y + height // 2 - 8, scale, colour=PAPER.faint, room=40)
            sheet.paste([_read(files[row]) for files in pictures[line * columns : (line + 1) * columns]], y)
            y += height + _GAP
        y += _GAP * (lines > 1)
    for label in strip.scores:
        sheet.picture.paste(_chart(strip, label, sheet, chart), (0, y))
        y += chart + _GAP
    return sheet.picture


def _read(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _chart(strip: Strip, label: str, sheet: Sheet, height: int) -> Image.Image:
    """One reward's chart as wide as the sheet, its columns beneath those of the images."""
    total, (column, _) = sheet.picture.width, sheet.cell
    wide = total - sheet.left - _GAP
    with rc_context(paper_style()):
        figure = Figure(figsize=(total / _DPI, height / _DPI), dpi=_DPI)
        # Room for the scales below and the title above.
        axes = figure.add_axes((sheet.left / total, 26 / height, wide / total, 1 - 52 / height))
        axes.set_title(short(label, 60), fontsize=10)
        if len(strip.labels) == 1:
            places = [sheet.x(index) - sheet.left + column / 2 for index in range(len(strip.cells))]
            draw_curve(axes, strip, label, places, PAPER)
            axes.set_xlim(0, wide)
            axes.set_xticks(places, [f"{cell[0]:g}" for cell in strip.cells])
        else:
            draw_grid(axes, strip, label, PAPER)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
