"""The results of a comparison: means over seeds, their spread, and everything as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from draft.comparison.record import TrainingRecord
from draft.comparison.samples import REWARD
from draft.comparison.search import AXIS, figure
from draft.comparison.settings import AXES, ComparisonSettings, MethodConfig
from draft.report.data import as_json, with_origin


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method's part in a comparison.

    Args:
        config: The method and its settings.
        rate: The learning rate that it was given; None where every one failed.
        tried: The search: learning rate to training.
        runs: The trainings that are shown, one per seed.
    """

    config: MethodConfig
    rate: float | None
    tried: Mapping[float, TrainingRecord]
    runs: Sequence[TrainingRecord]

    @property
    def completed(self) -> list[TrainingRecord]:
        """The trainings that did not break off."""
        return [run for run in self.runs if not run.failure]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison.

    Args:
        title: Its name.
        model: What the model is called.
        settings: Its settings.
        weights: Label to weight of the rewards that were trained for.
        images: Images behind each figure, of held-out prompts.
        start: What the base model scores on the training prompts of the curves.
        base: What it scores on the held-out prompts.
        methods: The methods by label.
    """

    title: str
    model: str
    settings: ComparisonSettings
    weights: Mapping[str, float]
    images: int
    start: Mapping[str, float]
    base: Mapping[str, float]
    methods: Mapping[str, MethodResult]

    @property
    def labels(self) -> list[str]:
        """What is measured: the reward, what it is a sum of where that is not a single one, and the rest."""
        same = list(self.weights) if list(self.weights.values()) == [1.0] else []
        return [label for label in self.base if label not in same]

    @property
    def ranked(self) -> list[str]:
        """The methods by their reward for the same seconds, the failed ones last."""
        rewards = {label: spread(method, AXIS, REWARD).mean for label, method in self.methods.items()}
        return sorted(rewards, key=lambda label: (math.isnan(rewards[label]), -rewards[label]))


@dataclass(frozen=True)
class Spread:
    """Several seeds' values.

    Args:
        mean: Their mean; NaN without any.
        deviation: Their standard deviation; NaN with fewer than two.
        count: How many.
    """

    mean: float
    deviation: float
    count: int


def spread(method: MethodResult, axis: str, label: str) -> Spread:
    """A method's score where a budget is spent, over its seeds.

    Args:
        method: The method.
        axis: The budget.
        label: The score.

    Returns:
        Mean and standard deviation of those that came so far.
    """
    return spread_of([figure(run, axis, label) for run in method.runs])


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of the values that are numbers."""
    finite = [value for value in values if math.isfinite(value)]
    mean = statistics.fmean(finite) if finite else float("nan")
    return Spread(mean, statistics.stdev(finite) if len(finite) > 1 else float("nan"), len(finite))


def per_update(method: MethodResult, axis: str) -> Spread:
    """What an update costs a method: seconds, or images scored.

    Args:
        method: The method.
        axis: `seconds` or `evaluations`.

    Returns:
        Mean and standard deviation over its seeds.
    """
    return spread_of([run.spending[axis] / run.spending["updates"] for run in method.completed])


def memory(method: MethodResult) -> int | None:
    """The most memory that a method's trainings took, bytes; None where it is unknown."""
    peaks = [run.memory for run in method.completed if run.memory is not None]
    return max(peaks, default=None)


def remarks(method: MethodResult, settings: ComparisonSettings) -> list[str]:
    """What a reader of the table has to know of a method: failures, budgets not spent, a search at its edge.

    Args:
        method: The method.
        settings: The comparison.

    Returns:
        Clauses; none where nothing is remarkable.
    """
    clauses = []
    if method.rate is None:
        reasons = dict.fromkeys(run.failure or "no finite reward" for run in method.tried.values())
        return [f"failed with every learning rate: {'; '.join(reasons)}"]
    if failed_rates := [f"{rate:g}" for rate, run in method.tried.items() if run.failure]:
        clauses.append(f"learning rate {', '.join(failed_rates)} failed in the search")
    if failed := [run for run in method.runs if run.failure]:
        clauses.append(f"{len(failed)} of {len(method.runs)} trainings failed: {failed[0].failure}")
    for axis in AXES:
        if method.completed and any(axis not in run.spent for run in method.completed):
            limit = getattr(settings.budget, axis)
            longest = settings.budget.seconds * settings.budget.cap
            clauses.append(f"{limit:g} {axis} not spent within {longest:g} s")
    if len(method.tried) > 1 and method.rate in (min(method.tried), max(method.tried)):
        end = "smallest" if method.rate == min(method.tried) else "largest"
        clauses.append(f"its learning rate is the {end} that was tried")
    return clauses


def json_text(comparison: Comparison, *, config_text: str = "") -> str:
    """Everything that was measured, as JSON; NaN is written as null.

    Args:
        comparison: The comparison.
        config_text: The pipeline's configuration, kept as text.

    Returns:
        JSON text.
    """
    methods = {
        label: {
            "method": asdict(method.config.method),
            "learning_rate": method.rate,
            "remarks": remarks(method, comparison.settings),
            "at": {axis: {name: asdict(spread(method, axis, name)) for name in comparison.base} for axis in AXES},
            "seconds_per_update": asdict(per_update(method, "seconds")),
            "evaluations_per_update": asdict(per_update(method, "evaluations")),
            "memory": memory(method),
            "search": [asdict(run) for run in method.tried.values()],
            "trainings": [asdict(run) for run in method.runs],
        }
        for label, method in comparison.methods.items()
    }
    value = {
        "title": comparison.title,
        "model": comparison.model,
        "budget": asdict(comparison.settings.budget),
        "images": comparison.images,
        "start": dict(comparison.start),
        "base": dict(comparison.base),
        "methods": methods,
    }
    return as_json(with_origin(value, config_text), indent=1)
