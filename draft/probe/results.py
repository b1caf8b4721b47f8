"""The results of a probe as JSON and as tables; the page and the Markdown file have the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from draft.probe.health import FACTOR, GridFigures, Health, Truncation, objection, recommended, verdict
from draft.probe.settings import ProbeSettings
from draft.report.data import as_json, with_origin
from draft.report.numbers import number
from draft.report.table import Table, as_markdown


@dataclass(frozen=True)
class ProbeResult:
    """The results of a probe and what they came from.

    Args:
        title: Heading of the page.
        model: The model as the user named it.
        subject: Which LoRA the gradient is of.
        settings: The probe's settings.
        health: The measured gradient.
        grids: The sampler's grid, then the others.
        scores: Mean raw score of each reward, by label.
    """

    title: str
    model: str
    subject: str
    settings: ProbeSettings
    health: Health
    grids: Sequence[GridFigures]
    scores: Mapping[str, float]


def norm_table(health: Health) -> Table:
    """The gradient of the last K steps against K, beside the step T - K that K adds."""
    limit, steps = recommended(health), health.steps
    rows = []
    for truncation in health.truncations:
        if not (truncation.k <= 10 or truncation.k % 5 == 0 or truncation.k in (limit, limit + 1, steps)):
            continue
        i = steps - truncation.k
        rows.append(
            [
                str(truncation.k),
                f"{number(truncation.norm)} ({number(truncation.least)} to {number(truncation.greatest)})",
                number(truncation.growth),
                number(truncation.beyond),
                number(truncation.cosine),
                number(truncation.agreement),
                f"{health.grid.times[i]:g}",
                number(health.grid.sensitivities[i]),
                number(health.terms[i]),
                number(health.adjoints[i]),
                _judged(truncation, limit),
            ]
        )
    columns = ["K", "norm (least to greatest)", "growth", "beyond reach", "cosine", "agreement"]
    return Table([*columns, "time of the step", "its sensitivity", "its own term", "adjoint before it", ""], rows)


def grid_table(grids: Sequence[GridFigures]) -> Table:
    """How far the network reaches in the last steps of each grid."""
    rows = []
    for grid in grids:
        ends = [*grid.sensitivities[:-4:-1], *[float("nan")] * 3][:3]
        rows.append(
            [grid.label, f"{grid.times[-1]:.4g}", *map(number, ends), number(max(grid.sensitivities))],
        )
    return Table(["grid", "last time", "last step", "the one before", "the third last", "largest of all"], rows)


def notes(probed: ProbeResult) -> list[str]:
    """How to read the tables, a paragraph each."""
    health = probed.health
    chance = f"1 / √{health.batches} = {number(health.batches**-0.5)}"
    return [
        f"Probed: {probed.subject}. Means over {health.batches} batches of {probed.settings.batch_size} images. "
        "Row K is the gradient of the last K steps, which is DRaFT-K's; the last row is the full one.",
        "Growth is the norm over that of K = 1. Beyond reach is the growth over what the steps' sensitivities account "
        "for: about 1 or less where the steps pass the gradient on as it is, more where it explodes. Cosine is that to "
        "the full gradient. Agreement is the norm of the batches' mean over their mean norm: 1 if all are the same, "
        f"{chance} if their directions have nothing to do with each other.",
        f"Our rule of thumb: not recommended from the first K on whose growth is more than {FACTOR:g} times what the "
        f"sensitivities account for, or where one batch has more than {FACTOR:g} times the median's norm.",
    ]


def markdown(probed: ProbeResult) -> str:
    """The results as Markdown: verdict, notes, tables."""
    text = verdict(probed.health)
    parts = [
        f"# {probed.title or 'Probe'}",
        f"{text[:1].upper()}{text[1:]}.",
        *notes(probed),
        as_markdown(norm_table(probed.health)),
        "How far the network reaches in the last steps, |∂x′/∂out|:",
        as_markdown(grid_table(probed.grids)),
    ]
    return "\n\n".join(parts) + "\n"


def json_text(probed: ProbeResult, *, config_text: str = "") -> str:
    """The results as JSON; what is not finite is written as null.

    Args:
        probed: The probe.
        config_text: The pipeline's configuration, kept as text.

    Returns:
        JSON text, the same for the same results.
    """
    health = probed.health
    value = {
        "title": probed.title,
        "verdict": verdict(health),
        "recommended_k": recommended(health),
        "factor": FACTOR,
        "model": probed.model,
        "subject": probed.subject,
        "settings": {one.name: _plain(getattr(probed.settings, one.name)) for one in fields(ProbeSettings)},
        "scores": dict(probed.scores),
        "k": [asdict(truncation) | {"objection": objection(truncation)} for truncation in health.truncations],
        "steps": [
            {"step": i, "time": time, "sensitivity": sensitivity, "term": term, "adjoint_after": adjoint}
            for i, (time, sensitivity, term, adjoint) in enumerate(
                zip(health.grid.times, health.grid.sensitivities, health.terms, health.adjoints[1:], strict=True)
            )
        ],
        "adjoint_of_noise": health.adjoints[0],
        "norms": [list(norms) for norms in health.norms],
        "grids": [asdict(grid) for grid in probed.grids],
    }
    return as_json(with_origin(value, config_text))


def _judged(truncation: Truncation, limit: int) -> str:
    return "recommended" if truncation.k <= limit else "not recommended"


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value  # type: ignore[call-overload]
