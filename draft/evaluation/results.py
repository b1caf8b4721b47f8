"""The results of an evaluation as plain values, and as JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from draft.diffusion.control.schedules import AdapterSchedule
from draft.diffusion.settings import SamplerSettings
from draft.evaluation.settings import EvaluateSettings
from draft.evaluation.statistics import Interval, paired_gain
from draft.report.data import as_csv, as_json, with_origin


@dataclass(frozen=True)
class Cell:
    """One reward of one variant.

    Args:
        mean: Mean score with its interval.
        gain: Mean difference to the base with its interval; None for the base itself.
        scores: One per image.
    """

    mean: Interval
    gain: Interval | None
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Results:
    """The results of an evaluation and what they came from.

    Args:
        title: Heading of the page.
        model: The model as the user named it.
        weights: Weight of every adapter, by label.
        prompts: One per image.
        seeds: One per image.
        groups: Number of each image's prompt.
        cells: By variant, then by reward label; the base is the first variant.
        settings: The evaluation's settings.
        descriptions: What each reward measures, by label.
        schedules: In which steps an adapter takes part, by label, where that is not all of them.
    """

    title: str
    model: str
    weights: Mapping[str, float]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: tuple[int, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    settings: EvaluateSettings
    descriptions: Mapping[str, str]
    schedules: Mapping[str, AdapterSchedule] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """The variants, the base first."""
        return list(self.cells)

    @property
    def labels(self) -> list[str]:
        """The rewards' labels."""
        return list(next(iter(self.cells.values())))


def compare(
    scores: Mapping[str, Mapping[str, Sequence[float]]], groups: Sequence[int], *, samples: int, seed: int
) -> dict[str, dict[str, Cell]]:
    """Turn scores into means, gains over the first variant, and their intervals.

    Args:
        scores: By variant, then by label; the first variant is the base.
        groups: Number of each image's prompt.
        samples: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        Cells by variant and label.
    """
    base = next(iter(scores.values()))
    cells: dict[str, dict[str, Cell]] = {}
    for variant, by_label in scores.items():
        cells[variant] = {}
        for label, values in by_label.items():
            zero = [0.0] * len(values)
            mean = paired_gain(zero, values, groups, samples=samples, seed=seed)
            gain = None if by_label is base else paired_gain(base[label], values, groups, samples=samples, seed=seed)
            cells[variant][label] = Cell(mean, gain, tuple(values))
    return cells


def verdict(results: Results) -> str:
    """The results in one sentence: what each adapter raised and lowered beyond chance.

    Args:
        results: The evaluation.

    Returns:
        A sentence with a full stop.
    """
    count = len(set(results.groups))
    where = f"{count} prompt{'s' if count != 1 else ''}"
    tuned = results.variants[1:]
    if not tuned or not results.labels:
        return f"{results.model} on its own, {where} and {len(results.seeds)} images."
    clauses = []
    for variant in tuned:
        gains = [
            (label, cell.gain) for label, cell in results.cells[variant].items() if cell.gain and cell.gain.significant
        ]
        raised = [label for label, gain in gains if gain.mean > 0]
        lowered = [label for label, gain in gains if gain.mean < 0]
        phrases = [f"{verb} {_listed(names)}" for verb, names in (("raises", raised), ("lowers", lowered)) if names]
        clauses.append(f"{variant} {' and '.join(phrases)}" if phrases else f"{variant} changes nothing beyond chance")
    return f"On {where}, {'; '.join(clauses)}."


def json_text(results: Results, *, config_text: str = "") -> str:
    """The report as JSON; NaN is written as null.

    Args:
        results: The evaluation.
        config_text: The pipeline's configuration, kept as text.

    Returns:
        JSON text, the same for the same results.
    """
    value = {
        "title": results.title,
        "verdict": verdict(results),
        "model": results.model,
        "adapters": dict(results.weights),
        "schedules": {label: asdict(schedule) for label, schedule in results.schedules.items()},
        "settings": settings_values(results.settings),
        "arms": {
            variant: {
                label: {
                    "mean": asdict(cell.mean),
                    "gain": asdict(cell.gain) | {"significant": cell.gain.significant} if cell.gain else None,
                    "scores": list(cell.scores),
                }
                for label, cell in by_label.items()
            }
            for variant, by_label in results.cells.items()
        },
        "images": [
            {"prompt": prompt, "seed": seed} for prompt, seed in zip(results.prompts, results.seeds, strict=True)
        ],
    }
    return as_json(with_origin(value, config_text))


def csv_text(results: Results) -> str:
    """Every image's scores, one line per variant and image.

    Args:
        results: The evaluation.

    Returns:
        CSV text with a header: arm, image, seed, prompt, one column per reward.
    """
    rows = (
        [variant, i, seed, prompt, *(cell.scores[i] for cell in by_label.values())]
        for variant, by_label in results.cells.items()
        for i, (prompt, seed) in enumerate(zip(results.prompts, results.seeds, strict=True))
    )
    return as_csv(["arm", "image", "seed", "prompt", *results.labels], rows)


def settings_values(settings: EvaluateSettings) -> dict[str, Any]:
    """The evaluation's own settings as plain values; a pipeline stage, which has more fields, gives these alone.

    Args:
        settings: The settings.

    Returns:
        Values by name, the sampler's as `sampler.<name>`.
    """
    values = {one.name: getattr(settings, one.name) for one in fields(EvaluateSettings)}
    sampler = values.pop("sampler")
    return {f"sampler.{one.name}": getattr(sampler, one.name) for one in fields(SamplerSettings)} | values


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
