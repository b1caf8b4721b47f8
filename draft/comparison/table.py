"""The tables of a comparison, as rows of text that the page and a Markdown file share."""

from __future__ import annotations

import math

from draft.comparison.results import Comparison, Spread, memory, per_update, remarks, spread
from draft.comparison.samples import REWARD
from draft.comparison.settings import AXES
from draft.report.numbers import NONE, mean_and_deviation, number
from draft.report.table import Table, as_markdown

UNITS = {"updates": "updates", "evaluations": "images scored", "seconds": "s of training"}
"""An axis in words that follow its number."""


def tables(comparison: Comparison) -> list[Table]:
    """All tables: the rewards, the costs, and for each budget everything that was measured.

    Args:
        comparison: The comparison.

    Returns:
        The tables, methods by their reward for the same seconds, the base model last.
    """
    ranked, budget = comparison.ranked, comparison.settings.budget
    limits = {axis: f"{getattr(budget, axis):g} {UNITS[axis]}" for axis in AXES}
    rewards, costs = [], []
    for label in ranked:
        method = comparison.methods[label]
        text = "; ".join(remarks(method, comparison.settings))
        rewards.append([label, *(cell(spread(method, axis, REWARD)) for axis in AXES), text])
        rate = f"{method.rate:g}" if method.rate is not None else NONE
        seconds, images = (per_update(method, axis) for axis in ("seconds", "evaluations"))
        most = memory(method)
        peak = f"{most / 2**20:.0f} MiB" if most is not None else NONE
        costs.append([label, rate, cell(seconds), NONE if math.isnan(images.mean) else f"{images.mean:.4g}", peak])
    rewards.append(["base", *[number(comparison.base[REWARD])] * len(AXES), ""])
    shown = [
        Table(["method", *(f"at {limits[axis]}" for axis in AXES), "remarks"], rewards, "Reward"),
        Table(["method", "learning rate", "s per update", "images per update", "memory"], costs, "Costs"),
    ]
    for axis in AXES:
        lines = [
            [label, *(cell(spread(comparison.methods[label], axis, name)) for name in comparison.labels)]
            for label in ranked
        ]
        line = ["base", *(number(comparison.base[name]) for name in comparison.labels)]
        shown.append(Table(["method", *comparison.labels], [*lines, line], f"Everything at {limits[axis]}"))
    return shown


def search_table(comparison: Comparison) -> Table | None:
    """What every learning rate's short training came to; None where nothing was searched.

    Args:
        comparison: The comparison.

    Returns:
        Methods in rows, learning rates in columns, the chosen one marked.
    """
    rates = sorted({rate for method in comparison.methods.values() for rate in method.tried})
    if not rates:
        return None
    rows = []
    for label in comparison.ranked:
        method = comparison.methods[label]
        cells = []
        for rate in rates:
            run = method.tried.get(rate)
            point = run.spent.get("seconds") if run else None
            text = "failed" if run and run.failure else number(point.figures[REWARD]) if point else ""
            cells.append(f"{text} *" if rate == method.rate and text else text)
        rows.append([label, *cells])
    return Table(["method", *(f"{rate:g}" for rate in rates)], rows, "Search for learning rates")


def markdown(comparison: Comparison) -> str:
    """All tables as Markdown.

    Args:
        comparison: The comparison.

    Returns:
        Text that ends with a line break.
    """
    searched = search_table(comparison)
    parts = [note(comparison)]
    for table in [*tables(comparison), *([searched] if searched else [])]:
        parts.append(f"**{table.title}**\n\n{as_markdown(table, align='---:')}")
    return "\n\n".join(parts) + "\n"


def note(comparison: Comparison) -> str:
    """One paragraph on how to read the figures."""
    seeds = len(comparison.settings.seeds)
    over = f"{seeds} trainings with seeds of their own" if seeds > 1 else "one training"
    return (
        f"Means ± standard deviation over {over}, each measured on the same {comparison.images} proper samples of "
        f"held-out prompts (`{REWARD}` is the weighted sum that was trained for), at the first update that had spent "
        "the budget. Methods stand in the order of their reward for the same seconds. Memory is the most that the "
        "updates took beyond what the process held before the training. In the search, * marks the learning rate that "
        "was taken."
    )


def cell(value: Spread) -> str:
    """A mean with its spread; a dash where there is none."""
    return mean_and_deviation(value.mean, value.deviation)
