"""The curves of a comparison as one picture: reward against updates, against images scored, against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from draft.comparison.results import Comparison, MethodResult
from draft.comparison.samples import REWARD
from draft.comparison.settings import AXES

# Okabe and Ito's colours, which colour-blind eyes tell apart, without the yellow that white swallows; then dashed.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)))
_WORDS = {"updates": "updates", "evaluations": "images scored", "seconds": "seconds of training"}
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f99",
    "xtick.color": "#5a5f69",
    "ytick.color": "#5a5f69",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Line:
    """A method's curve over one axis.

    Args:
        x: What was spent, mean over seeds.
        mean: Reward, mean over seeds.
        low: Its least value over seeds.
        high: Its greatest.
    """

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def make_line(method: MethodResult, axis: str, *, start: float) -> Line:
    """Join the seeds' curves, update by update, as far as all of them go.

    Args:
        method: The method.
        axis: What is spent.
        start: The base model's reward, where every curve begins.

    Returns:
        The curve.
    """
    curves = [run.curve for run in method.completed]
    joined = list(zip(*curves, strict=False))
    spent = [[point.spending[axis] for point in points] for points in joined]
    rewards = [[start], *([point.figures[REWARD] for point in points] for points in joined)]
    return Line(
        x=[0.0, *(sum(values) / len(values) for values in spent)],
        mean=[sum(values) / len(values) for values in rewards],
        low=[min(values) for values in rewards],
        high=[max(values) for values in rewards],
    )


def save_plot(comparison: Comparison, path: Path) -> None:
    """Draw the curves: the mean over seeds, a band from the least to the greatest, as far as the budgets go.

    Args:
        comparison: The comparison.
        path: The PNG file.
    """
    shown = [label for label in comparison.ranked if comparison.methods[label].completed]
    looks = {label: (_COLOURS[i % 7], _DASHES[i // 7 % 3]) for i, label in enumerate(comparison.methods)}
    start = comparison.start[REWARD]
    with rc_context(_STYLE):
        figure = Figure(figsize=(13, max(4.2, 0.24 * len(shown) + 1.6)), layout="constrained")
        panels = figure.subplots(1, len(AXES), sharey=True)
        for axis, axes in zip(AXES, panels, strict=True):
            limit = getattr(comparison.settings.budget, axis)
            for label in shown:
                colour, dashes = looks[label]
                line = make_line(comparison.methods[label], axis, start=start)
                axes.plot(line.x, line.mean, color=colour, linestyle=dashes, linewidth=1.8, label=_plain(label))
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
            axes.axhline(start, color="#8a8f99", linewidth=0.8, linestyle=(0, (1, 2)))
            axes.set_xlim(0, limit)
            axes.set_xlabel(_WORDS[axis])
            axes.xaxis.set_major_locator(MaxNLocator(5))
        seeds = len(comparison.settings.seeds)
        panels[0].set_ylabel("reward of proper samples" + (f"\n(mean and range of {seeds} seeds)" if seeds > 1 else ""))
        _legend(panels[-1])
        figure.savefig(path, dpi=150, facecolor="white")


def _legend(axes: Axes) -> None:
    """Names next to the last panel, in the order in which the methods are ranked."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, handlelength=2.6, borderaxespad=0)


def _plain(label: str) -> str:
    return label.replace("$", r"\$").lstrip("_")  # matplotlib leaves out names that begin with _
