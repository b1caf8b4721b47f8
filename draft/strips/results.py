"""What a strip shows, as plain values, and its figures as JSON and CSV."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from draft.report.data import as_csv, as_json, with_origin
from draft.strips.settings import StripSettings


@dataclass(frozen=True)
class Strip:
    """The scores of one or two adapters over their scales, and what they came from.

    A cell is one choice of scales. Cells go through the first adapter's scales, for every scale of the second.

    Args:
        title: Heading of the page.
        model: The model as the user named it.
        labels: The adapters' labels, one or two.
        cells: Scales of the adapters in each cell.
        prompts: Prompt of each row.
        seeds: Seed of each row.
        scores: By reward label, for each cell one score per row.
        descriptions: What each reward measures, by label.
        settings: The strip's settings.
    """

    title: str
    model: str
    labels: tuple[str, ...]
    cells: tuple[tuple[float, ...], ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[tuple[float, ...], ...]]
    descriptions: Mapping[str, str]
    settings: StripSettings


@dataclass(frozen=True)
class Point:
    """One reward in one cell, over the rows.

    Args:
        mean: Mean score.
        deviation: The rows' standard deviation, 0 where there is one row.
        least: The lowest score.
        greatest: Higher rewards count as this one.
    """

    mean: float
    deviation: float
    least: float
    greatest: float


def cells_of(settings: StripSettings, adapters: int) -> tuple[tuple[float, ...], ...]:
    """The scales of each cell: those of one adapter, or all pairs of two, the first one's varying fastest."""
    if adapters == 1:
        return tuple((scale,) for scale in settings.scales)
    return tuple((a, b) for b in settings.scales_b for a in settings.scales)


def curve(strip: Strip, label: str) -> list[Point]:
    """One reward over the cells; scores that do not exist are left out.

    Args:
        strip: What was drawn and scored.
        label: The reward.

    Returns:
        A point for each cell, NaN where no row has a score.
    """
    points = []
    for scores in strip.scores[label]:
        finite = [score for score in scores if math.isfinite(score)]
        if finite:
            points.append(Point(statistics.fmean(finite), statistics.pstdev(finite), min(finite), max(finite)))
        else:
            points.append(Point(*[math.nan] * 4))
    return points


def highest(strip: Strip, label: str) -> tuple[int, int] | None:
    """The cell where a reward's mean is highest, and how many rows are highest there themselves.

    Args:
        strip: What was drawn and scored.
        label: The reward.

    Returns:
        Number of the cell and number of rows; None without any score. Of equal cells the first.
    """
    means = [point.mean for point in curve(strip, label)]
    finite = [index for index, mean in enumerate(means) if math.isfinite(mean)]
    if not finite:
        return None
    best = max(finite, key=lambda index: means[index])
    rows = zip(*strip.scores[label], strict=True)
    return best, sum(_first_highest(row) == best for row in rows)


def scales_text(strip: Strip, cell: int) -> str:
    """A cell's scales in words: ``"0.75"``, of two adapters ``"a 0.75, b 0.5"``."""
    if len(strip.labels) == 1:
        return f"{strip.cells[cell][0]:g}"
    return ", ".join(f"{label} {scale:g}" for label, scale in zip(strip.labels, strip.cells[cell], strict=True))


def json_text(strip: Strip, *, config_text: str = "") -> str:
    """The figures as JSON; NaN is written as null.

    Args:
        strip: What was drawn and scored.
        config_text: The pipeline's configuration, kept as text.

    Returns:
        JSON text, the same for the same figures.
    """
    rewards: dict[str, Any] = {}
    for label in strip.scores:
        best = highest(strip, label)
        rewards[label] = {
            "curve": [asdict(point) for point in curve(strip, label)],
            "highest": {"scales": strip.cells[best[0]], "rows": best[1]} if best else None,
            "scores": strip.scores[label],
        }
    value = {
        "title": strip.title,
        "model": strip.model,
        "adapters": strip.labels,
        "cells": strip.cells,
        "rows": [{"prompt": prompt, "seed": seed} for prompt, seed in zip(strip.prompts, strip.seeds, strict=True)],
        "rewards": rewards,
    }
    return as_json(with_origin(value, config_text))


def csv_text(strip: Strip) -> str:
    """Every image's scores, one line per cell and row.

    Args:
        strip: What was drawn and scored.

    Returns:
        CSV text with a header: a column of scales per adapter, row, seed, prompt, one column per reward.
    """
    rows = (
        [*scales, row, seed, prompt, *(scores[cell][row] for scores in strip.scores.values())]
        for cell, scales in enumerate(strip.cells)
        for row, (prompt, seed) in enumerate(zip(strip.prompts, strip.seeds, strict=True))
    )
    return as_csv([*(f"scale_{label}" for label in strip.labels), "row", "seed", "prompt", *strip.scores], rows)


def _first_highest(scores: Sequence[float]) -> int:
    finite = [index for index, score in enumerate(scores) if math.isfinite(score)]
    return max(finite, key=lambda index: scores[index]) if finite else -1
