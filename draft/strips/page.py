"""The page of a strip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from draft.report.numbers import number
from draft.report.page import data_uri, render
from draft.strips.charts import curve_chart, grid_means
from draft.strips.results import Strip, curve, highest, scales_text


def write_page(strip: Strip, pictures: Sequence[Sequence[Path]], path: Path, *, config_text: str) -> None:
    """Write the page.

    Args:
        strip: What was drawn and scored.
        pictures: For each cell the image files of its rows.
        path: Where the page goes.
        config_text: The pipeline's configuration, shown as text.
    """
    single = len(strip.labels) == 1
    text = render(
        "strips/page.html.j2",
        mark="strip",
        title=strip.title or "Strip",
        verdict=verdict(strip),
        columns=len(strip.settings.scales),
        facts=[
            ("model", strip.model),
            ("adapter" if single else "adapters", " and ".join(strip.labels)),
            ("rows", str(len(strip.seeds))),
            ("steps", str(strip.settings.sampler.num_inference_steps)),
            ("guidance", f"{strip.settings.sampler.guidance_scale:g}"),
        ],
        labels=strip.labels,
        scales=[f"{scale:g}" for scale in strip.settings.scales],
        rows=_rows(strip, pictures),
        charts=[Markup(curve_chart(strip, label)) for label in strip.scores] if single else [],
        grids=[] if single else [(label, _grid(strip, label)) for label in strip.scores],
        table=_table(strip),
        rewards=list(strip.scores),
        descriptions=strip.descriptions,
        config=config_text,
    )
    path.write_text(text, encoding="utf-8")


def verdict(strip: Strip) -> str:
    """Where each reward's mean is highest, in one sentence.

    Args:
        strip: What was drawn and scored.

    Returns:
        A sentence with a full stop.
    """
    named = " and ".join(strip.labels)
    rows = f"{len(strip.seeds)} row{'s' if len(strip.seeds) != 1 else ''}"
    clauses = []
    for label in strip.scores:
        if best := highest(strip, label):
            cell, agreeing = best
            agree = "" if len(strip.seeds) == 1 else f" (by itself in {agreeing} of {rows})"
            clauses.append(f"{label} is highest at {scales_text(strip, cell)}{agree}")
    over = f"{len(strip.cells)} {'scales' if len(strip.labels) == 1 else 'pairs of scales'}"
    return f"{'; '.join(clauses)}." if clauses else f"{named} over {over}, {rows}."


def _rows(strip: Strip, pictures: Sequence[Sequence[Path]]) -> list[dict[str, Any]]:
    """Per prompt and seed its lines of images: one, or one per scale of the second adapter."""
    wide = len(strip.settings.scales)
    heads = [""] if len(strip.labels) == 1 else [f"{scale:g}" for scale in strip.settings.scales_b]
    rows = []
    for row, (prompt, seed) in enumerate(zip(strip.prompts, strip.seeds, strict=True)):
        lines = []
        for line, head in enumerate(heads):
            cells = range(line * wide, (line + 1) * wide)
            figures = [
                (
                    scales_text(strip, cell),
                    data_uri(pictures[cell][row]),
                    [(label, number(scores[cell][row])) for label, scores in strip.scores.items()],
                )
                for cell in cells
            ]
            lines.append((head, figures))
        rows.append({"prompt": prompt, "seed": seed, "lines": lines})
    return rows


def _grid(strip: Strip, label: str) -> list[tuple[str, list[tuple[str, int]]]]:
    """One reward's means over two scales, each with a strength of colour in percent."""
    heads = [f"{scale:g}" for scale in strip.settings.scales_b]
    means = grid_means(strip, label)
    return [
        (head, [(number(mean), round(4 + 50 * share)) for mean, share in line])
        for head, line in zip(heads, means, strict=True)
    ]


def _table(strip: Strip) -> list[tuple[str, list[str]]]:
    curves = [curve(strip, label) for label in strip.scores]
    return [
        (
            scales_text(strip, cell),
            [f"{number(points[cell].mean)} ± {number(points[cell].deviation)}" for points in curves],
        )
        for cell in range(len(strip.cells))
    ]
