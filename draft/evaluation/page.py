"""The report page: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from draft.diffusion.control.schedules import schedule_words
from draft.evaluation.charts import gain_chart, training_charts
from draft.evaluation.results import Results, settings_values, verdict, versions
from draft.evaluation.statistics import Interval

_SIDE = 320


@dataclass(frozen=True)
class Row:
    """One prompt's pictures, one per arm.

    Args:
        prompt: The prompt.
        seed: The seed that all of them share.
        shots: Per arm its label, the picture as a data URI, and (reward label, value, change to the base) triples.
    """

    prompt: str
    seed: int
    shots: Sequence[tuple[str, str, Sequence[tuple[str, str, str]]]]


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
        results: What was found.
        pictures: The image files of every arm, in the order of the prompts.
        path: Where the page goes.
        curves: `metrics.jsonl` of the trainings by label; missing files are left out.
        config_text: The pipeline's configuration, shown as text; empty: the evaluation's settings are shown.
    """
    environment = Environment(
        loader=PackageLoader("draft.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["soft"] = soft_breaks
    charts = [Markup(chart) for label in results.labels if (chart := gain_chart(results, label))]
    count = len(set(results.groups))
    text = environment.get_template("page.html.j2").render(
        title=results.title or "Evaluation",
        verdict=verdict(results),
        facts=[
            ("model", results.model),
            ("prompts", str(count)),
            ("images per arm", str(len(results.seeds))),
            ("steps", str(results.settings.sampler.num_inference_steps)),
            ("guidance", f"{results.settings.sampler.guidance_scale:g}"),
        ],
        columns=min(len(results.arms), 6),
        labels=results.labels,
        descriptions=results.descriptions,
        table=_table(results),
        gains=charts,
        rows=_rows(results, pictures),
        shown=min(results.settings.shown, count),
        count=count,
        trainings=[(label, Markup(chart)) for label, chart in training_charts(curves)],
        config=config_text or _settings_text(results),
        versions=versions(),
        seeds=_seeds(results.seeds),
        samples=results.settings.bootstrap_samples,
    )
    path.write_text(text, encoding="utf-8")


def number(value: float) -> str:
    """A score in about four characters that count: `0.2731`, `12.3`, `1.2e+06`; a dash for NaN.

    Args:
        value: Any float.

    Returns:
        Text with a true minus sign.

    Example:
        >>> number(12.345), number(float("nan"))
        ('12.35', '–')
    """
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size != 0 and (size >= 1e5 or size < 1e-4):
        text = f"{value:.1e}"
    else:
        text = f"{value:.{4 if size < 1 else 3 if size < 10 else 2 if size < 1000 else 0}f}"
    return text.replace("-", "−")


def soft_breaks(text: str) -> Markup:
    """Escaped text that may be broken after each underscore, so that long names fit narrow columns.

    Args:
        text: Any text.

    Returns:
        HTML.
    """
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def _table(results: Results) -> list[dict[str, Any]]:
    rows = []
    for arm in results.arms:
        cells = [
            {"mean": number(cell.mean.mean), **_gain(cell.gain), "missing": _missing(cell.scores)}
            for cell in results.cells[arm].values()
        ]
        weight = results.weights.get(arm, 1.0)
        said = ["" if weight == 1.0 else f"× {weight:g}", schedule_words(results.schedules.get(arm))]
        rows.append({"arm": arm, "weight": ", ".join(filter(None, said)), "cells": cells})
    return rows


def _gain(gain: Interval | None) -> dict[str, Any]:
    if gain is None:
        return {"gain": "", "interval": "", "direction": ""}
    interval = f"{_signed(gain.low)} to {_signed(gain.high)}" if math.isfinite(gain.low) else "no interval"
    direction = "" if not gain.significant else "up" if gain.mean > 0 else "down"
    return {"gain": _signed(gain.mean), "interval": interval, "direction": direction}


def _missing(scores: Sequence[float]) -> str:
    missing = sum(not math.isfinite(score) for score in scores)
    return f"{missing} of {len(scores)} scores missing" if missing else ""


def _rows(results: Results, pictures: Mapping[str, Sequence[Path]]) -> list[Row]:
    """The first image of the first prompts: chosen by order alone, never by how well they came out."""
    chosen = [results.groups.index(group) for group in sorted(set(results.groups))][: results.settings.shown]
    rows = []
    for i in chosen:
        shots = []
        for arm in results.arms:
            values = []
            for label, cell in results.cells[arm].items():
                before = results.cells[results.arms[0]][label].scores[i]
                change = "" if arm == results.arms[0] else _direction(cell.scores[i] - before)
                values.append((label, number(cell.scores[i]), change))
            shots.append((arm, data_uri(pictures[arm][i]), values))
        rows.append(Row(results.prompts[i], results.seeds[i], shots))
    return rows


def _direction(change: float) -> str:
    return "up" if change > 0 else "down" if change < 0 else ""


def data_uri(path: Path) -> str:
    """A picture for the page: small ones untouched, larger ones shrunk and as WebP.

    Args:
        path: The picture's file.

    Returns:
        The address that holds it.
    """
    with Image.open(path) as picture:
        if max(picture.size) <= 128:
            return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        smaller = picture.convert("RGB")
        smaller.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    smaller.save(stream, "WEBP", quality=86, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _seeds(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    if list(seeds) == list(range(first, last + 1)) and first != last:
        return f"{first} to {last}, one per image, the same for every arm"
    return ", ".join(str(seed) for seed in seeds)


def _settings_text(results: Results) -> str:
    return "\n".join(f"{name}: {value}" for name, value in settings_values(results.settings).items())
