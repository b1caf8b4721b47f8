"""A strip's curves: a reward over one scale, or over two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from draft.report.charts import PAGE, Colours, short, style, svg_text
from draft.report.numbers import number
from draft.strips.results import Strip, curve


def curve_chart(strip: Strip, label: str) -> str:
    """One reward over the scales: mean over the rows, each row's own curve, and their range.

    Args:
        strip: What was drawn and scored, with one adapter.
        label: The reward.

    Returns:
        SVG text.
    """
    scales = [cell[0] for cell in strip.cells]
    with rc_context(style(f"strip {label}")):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        draw_curve(axes, strip, label, scales, PAGE)
        axes.set_title(short(label, 40))
        axes.set_xlabel(f"scale of {short(strip.labels[0], 30)}")
        return svg_text(figure, f"{label} over the scale of {strip.labels[0]}, mean and range of the rows")


def draw_curve(axes: Axes, strip: Strip, label: str, places: Sequence[float], colours: Colours) -> None:
    """Draw one reward's curve.

    Args:
        axes: Where.
        strip: What was drawn and scored, with one adapter.
        label: The reward.
        places: Where each scale is on the horizontal axis.
        colours: What it is drawn in.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    points, colour = curve(strip, label), colours.series[list(strip.scores).index(label) % len(colours.series)]
    xs = [places[index] for index in order]
    if len(strip.seeds) > 1:
        low, high = ([getattr(points[index], name) for index in order] for name in ("least", "greatest"))
        axes.fill_between(xs, low, high, color=colour, alpha=0.14, linewidth=0)
        for row in range(len(strip.seeds)):
            axes.plot(xs, [strip.scores[label][index][row] for index in order], color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(xs, [points[index].mean for index in order], "o-", color=colour, linewidth=2, markersize=4)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=colours.line, linewidth=0.6)
    axes.set_axisbelow(True)


def draw_grid(axes: Axes, strip: Strip, label: str, colours: Colours) -> None:
    """Draw one reward's means over the scales of two adapters, a number in each cell.

    Args:
        axes: Where.
        strip: What was drawn and scored, with two adapters.
        label: The reward.
        colours: What it is drawn in.
    """
    settings = strip.settings
    for row, values in enumerate(grid_means(strip, label)):
        for column, (mean, share) in enumerate(values):
            axes.add_patch(_cell(column, row, share, colours.series[0]))
            axes.text(column, row, number(mean), ha="center", va="center", color=colours.ink, fontsize=9)
    axes.set_xlim(-0.5, len(settings.scales) - 0.5)
    axes.set_ylim(len(settings.scales_b) - 0.5, -0.5)
    axes.set_xticks(range(len(settings.scales)), [f"{scale:g}" for scale in settings.scales])
    axes.set_yticks(range(len(settings.scales_b)), [f"{scale:g}" for scale in settings.scales_b])
    axes.tick_params(length=0)


def grid_means(strip: Strip, label: str) -> list[list[tuple[float, float]]]:
    """One reward's means over two scales: for each scale of the second adapter those of the first.

    Args:
        strip: What was drawn and scored, with two adapters.
        label: The reward.

    Returns:
        Mean, and where it lies between the lowest (0) and the highest (1) mean; 0 for a mean that does not exist.
    """
    means = [point.mean for point in curve(strip, label)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    shares = [(mean - low) / (high - low) if high > low and math.isfinite(mean) else 0.0 for mean in means]
    wide = len(strip.settings.scales)
    pairs = list(zip(means, shares, strict=True))
    return [pairs[start : start + wide] for start in range(0, len(pairs), wide)]


def _cell(column: int, row: int, share: float, colour: str) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=0.04 + 0.5 * share, linewidth=0)
