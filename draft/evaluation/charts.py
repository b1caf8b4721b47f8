"""The report's charts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from draft.evaluation.results import Results
from draft.report.charts import FAINT, INK, LINE, SERIES, short, style, svg_text

# What a metrics file holds besides rewards and is of no use as a curve.
_UNINTERESTING = ("loss", "step", "epoch", "seconds", "time", "eta", "memory", "learning_rate", "lr", "images")


def gain_chart(results: Results, label: str) -> str:
    """A forest plot: every adapter's gain of one reward over the base, with its 95 % interval.

    Args:
        results: The evaluation.
        label: The reward.

    Returns:
        SVG text; empty without any finite gain.
    """
    rows = [(variant, results.cells[variant][label].gain) for variant in results.variants[1:]]
    shown = [(i, gain) for i, (_, gain) in enumerate(rows) if gain is not None and math.isfinite(gain.mean)]
    if not shown:
        return ""
    with rc_context(style(f"gain {label}")):
        figure = Figure(figsize=(4.6, 0.75 + 0.38 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
        for i, gain in shown:
            colour = SERIES[i % len(SERIES)]
            if math.isfinite(gain.low):
                axes.plot(
                    [gain.low, gain.high], [i, i], color=colour, linewidth=3.5, solid_capstyle="round", alpha=0.55
                )
            axes.plot([gain.mean], [i], "o", color=colour, markersize=8, markeredgewidth=0 if gain.significant else 1.5)
        axes.set_yticks(range(len(rows)), [short(variant) for variant, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.spines["left"].set_visible(False)
        axes.set_title(short(label, 40))
        return svg_text(figure, f"gain of {label} over the base, by adapter, with 95 % intervals")


def training_charts(curves: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Training curves: for every training one small plot per figure that its metrics file holds.

    Args:
        curves: `metrics.jsonl` by label; a file that is missing or empty is left out.

    Returns:
        Label and SVG text per training that has any.
    """
    charts = []
    for index, (label, path) in enumerate(curves.items()):
        series = read_curves(path)
        if series:
            charts.append((label, _curves(label, series, SERIES[index % len(SERIES)])))
    return charts


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The numbers of a metrics file over the steps.

    Args:
        path: JSON lines, each with `step` and numbers by name; broken lines are left out.

    Returns:
        Points (step, value) by name, rewards first; at most six names.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    if not path.is_file():
        return series
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict):
            continue
        step = row.get("step", number)
        for name, value in row.items():
            plain = isinstance(value, int | float) and not isinstance(value, bool) and isinstance(step, int | float)
            if plain and math.isfinite(value) and name not in _UNINTERESTING:
                series.setdefault(name, []).append((float(step), float(value)))
    names = [name for name, points in series.items() if len(points) > 1]
    names.sort(key=lambda name: (not name.startswith("reward"), name.startswith(("grad", "loss", "clip"))))
    return {name: series[name] for name in names[:6]}


def _curves(label: str, series: Mapping[str, Sequence[tuple[float, float]]], colour: str) -> str:
    columns = min(3, len(series))
    lines = math.ceil(len(series) / columns)
    with rc_context(style(f"curves {label}")):
        figure = Figure(figsize=(3.1 * columns, 2.0 * lines), layout="constrained")
        for i, (name, points) in enumerate(series.items()):
            axes: Axes = figure.add_subplot(lines, columns, i + 1)
            steps, values = [step for step, _ in points], [value for _, value in points]
            axes.plot(steps, values, color=colour, linewidth=1, alpha=0.35)
            axes.plot(steps, _smooth(values), color=colour, linewidth=2)
            axes.set_title(short(name, 30))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.grid(axis="y", color=LINE, linewidth=0.6)
            axes.set_axisbelow(True)
        figure.supxlabel("update", fontsize=9, color=FAINT)
        return svg_text(figure, f"training curves of {label}")


def _smooth(values: Sequence[float]) -> list[float]:
    """A centred running mean over about a tenth of the curve, narrower towards its ends."""
    half = max(1, len(values) // 20)
    smoothed = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        smoothed.append(sum(window) / len(window))
    return smoothed
