"""The tables of a comparison, as rows of text that the page and a Markdown file share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from draft.comparison.results import Comparison, Spread, memory, per_update, remarks, spread
from draft.comparison.samples import REWARD
from draft.comparison.settings import AXES
from draft.evaluation.page import number

UNITS = {"updates": "updates", "evaluations": "images scored", "seconds": "s of training"}
"""An axis in words that follow its number."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        title: What it shows.
        columns: The heads of its columns.
        rows: Its rows, each as long as `columns`.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


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
        entrant = comparison.entrants[label]
        said = "; ".join(remarks(entrant, comparison.settings))
        rewards.append([label, *(cell(spread(entrant, axis, REWARD)) for axis in AXES), said])
        rate = f"{entrant.rate:g}" if entrant.rate is not None else "–"
        seconds, images = (per_update(entrant, axis) for axis in ("seconds", "evaluations"))
        most = memory(entrant)
        held = f"{most / 2**20:.0f} MiB" if most is not None else "–"
        costs.append([label, rate, cell(seconds), "–" if math.isnan(images.mean) else f"{images.mean:.4g}", held])
    rewards.append(["base", *[number(comparison.base[REWARD])] * len(AXES), ""])
    found = [
        Table("Reward", ["method", *(f"at {limits[axis]}" for axis in AXES), "remarks"], rewards),
        Table("Costs", ["method", "learning rate", "s per update", "images per update", "memory"], costs),
    ]
    for axis in AXES:
        lines = [
            [label, *(cell(spread(comparison.entrants[label], axis, name)) for name in comparison.labels)]
            for label in ranked
        ]
        line = ["base", *(number(comparison.base[name]) for name in comparison.labels)]
        found.append(Table(f"Everything at {limits[axis]}", ["method", *comparison.labels], [*lines, line]))
    return found


def search_table(comparison: Comparison) -> Table | None:
    """What every learning rate's short training came to; None where nothing was searched.

    Args:
        comparison: The comparison.

    Returns:
        Methods in rows, learning rates in columns, the chosen one marked.
    """
    rates = sorted({rate for entrant in comparison.entrants.values() for rate in entrant.tried})
    if not rates:
        return None
    rows = []
    for label in comparison.ranked:
        entrant = comparison.entrants[label]
        cells = []
        for rate in rates:
            made = entrant.tried.get(rate)
            point = made.spent.get("seconds") if made else None
            text = "failed" if made and made.failure else number(point.figures[REWARD]) if point else ""
            cells.append(f"{text} *" if rate == entrant.rate and text else text)
        rows.append([label, *cells])
    return Table("Search for learning rates", ["method", *(f"{rate:g}" for rate in rates)], rows)


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
        heads, *rows = ([cell.replace("|", "\\|") for cell in row] for row in [table.columns, *table.rows])
        rule = ["---", *["---:"] * (len(heads) - 1)]
        parts.append("\n".join([f"**{table.title}**\n", *(f"| {' | '.join(row)} |" for row in [heads, rule, *rows])]))
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
    """A mean with its spread to as many places: `45.90 ± 0.21`; a dash where there is none.

    Args:
        value: The spread.

    Returns:
        Text.
    """
    mean = number(value.mean)
    if math.isnan(value.deviation):
        return mean
    return f"{mean} ± {number(value.deviation) if 'e' in mean else format(value.deviation, f'.{_places(mean)}f')}"


def _places(text: str) -> int:
    return len(text.partition(".")[2])
