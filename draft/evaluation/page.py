"""The report page of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from draft.diffusion.control.schedules import schedule_words
from draft.evaluation.charts import gain_chart, training_charts
from draft.evaluation.results import Results, settings_values, verdict
from draft.evaluation.statistics import Interval
from draft.report.numbers import number, signed
from draft.report.page import data_uri, render


@dataclass(frozen=True)
class Row:
    """One prompt's pictures, one per variant.

    Args:
        prompt: The prompt.
        seed: The seed that all of them share.
        figures: Per variant its label, the picture as a data URI, and (reward label, value, change to the base)
            triples.
    """

    prompt: str
    seed: int
    figures: Sequence[tuple[str, str, Sequence[tuple[str, str, str]]]]


def write_page(
    results: Results,
    pictures: Mapping[str, Sequence[Path]],
    path: Path,
    *,
    curves: Mapping[str, Path],
    config_text: str,
) -> None:
    """Write the report page.

    Args:
        results: The evaluation.
        pictures: The image files of every variant, in the order of the prompts.
        path: Where the page goes.
        curves: `metrics.jsonl` of the trainings by label; missing files are left out.
        config_text: The pipeline's configuration, shown as text; empty: the evaluation's settings are shown.
    """
    gains = [Markup(chart) for label in results.labels if (chart := gain_chart(results, label))]
    count = len(set(results.groups))
    text = render(
        "evaluation/page.html.j2",
        mark="evaluation",
        title=results.title or "Evaluation",
        verdict=verdict(results),
        facts=[
            ("model", results.model),
            ("prompts", str(count)),
            ("images per arm", str(len(results.seeds))),
            ("steps", str(results.settings.sampler.num_inference_steps)),
            ("guidance", f"{results.settings.sampler.guidance_scale:g}"),
        ],
        columns=min(len(results.variants), 6),
        labels=results.labels,
        descriptions=results.descriptions,
        table=_table(results),
        gains=gains,
        rows=_rows(results, pictures),
        shown=min(results.settings.shown, count),
        count=count,
        trainings=[(label, Markup(chart)) for label, chart in training_charts(curves)],
        config=config_text or _settings_text(results),
        seeds=_seeds(results.seeds),
        samples=results.settings.bootstrap_samples,
    )
    path.write_text(text, encoding="utf-8")


def _table(results: Results) -> list[dict[str, Any]]:
    rows = []
    for variant in results.variants:
        cells = [
            {"mean": number(cell.mean.mean), **_gain(cell.gain), "missing": _missing(cell.scores)}
            for cell in results.cells[variant].values()
        ]
        weight = results.weights.get(variant, 1.0)
        remarks = ["" if weight == 1.0 else f"× {weight:g}", schedule_words(results.schedules.get(variant))]
        rows.append({"variant": variant, "weight": ", ".join(filter(None, remarks)), "cells": cells})
    return rows


def _gain(gain: Interval | None) -> dict[str, Any]:
    if gain is None:
        return {"gain": "", "interval": "", "direction": ""}
    interval = f"{signed(gain.low)} to {signed(gain.high)}" if math.isfinite(gain.low) else "no interval"
    direction = "" if not gain.significant else "up" if gain.mean > 0 else "down"
    return {"gain": signed(gain.mean), "interval": interval, "direction": direction}


def _missing(scores: Sequence[float]) -> str:
    missing = sum(not math.isfinite(score) for score in scores)
    return f"{missing} of {len(scores)} scores missing" if missing else ""


def _rows(results: Results, pictures: Mapping[str, Sequence[Path]]) -> list[Row]:
    """The first image of the first prompts: chosen by order alone, never by how well they came out."""
    chosen = [results.groups.index(group) for group in sorted(set(results.groups))][: results.settings.shown]
    base = results.cells[results.variants[0]]
    rows = []
    for i in chosen:
        figures = []
        for variant in results.variants:
            values = []
            for label, cell in results.cells[variant].items():
                change = "" if variant == results.variants[0] else _direction(cell.scores[i] - base[label].scores[i])
                values.append((label, number(cell.scores[i]), change))
            figures.append((variant, data_uri(pictures[variant][i]), values))
        rows.append(Row(results.prompts[i], results.seeds[i], figures))
    return rows


def _direction(change: float) -> str:
    return "up" if change > 0 else "down" if change < 0 else ""


def _seeds(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    if list(seeds) == list(range(first, last + 1)) and first != last:
        return f"{first} to {last}, one per image, the same for every arm"
    return ", ".join(str(seed) for seed in seeds)


def _settings_text(results: Results) -> str:
    return "\n".join(f"{name}: {value}" for name, value in settings_values(results.settings).items())
