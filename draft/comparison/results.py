"""What a comparison found: means over seeds, their spread, and everything as JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from draft.comparison.record import Attempt
from draft.comparison.samples import REWARD
from draft.comparison.search import AXIS, figure
from draft.comparison.settings import AXES, ComparisonSettings, Contender
from draft.evaluation.results import finite, versions


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One method's part in a comparison.

    Args:
        contender: The method and its settings.
        rate: The learning rate that it was given; None where every one failed.
        tried: The search: learning rate to training.
        attempts: The trainings that are shown, one per seed.
    """

    contender: Contender
    rate: float | None
    tried: Mapping[float, Attempt]
    attempts: Sequence[Attempt]

    @property
    def whole(self) -> list[Attempt]:
        """The trainings that did not break off."""
        return [made for made in self.attempts if not made.failure]


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
        entrants: The methods by label.
    """

    title: str
    model: str
    settings: ComparisonSettings
    weights: Mapping[str, float]
    images: int
    start: Mapping[str, float]
    base: Mapping[str, float]
    entrants: Mapping[str, Entrant]

    @property
    def labels(self) -> list[str]:
        """What is measured: the reward, what it is a sum of where that is not a single one, and the rest."""
        same = list(self.weights) if list(self.weights.values()) == [1.0] else []
        return [label for label in self.base if label not in same]

    @property
    def ranked(self) -> list[str]:
        """The methods by their reward for the same seconds, the failed ones last."""
        rewards = {label: spread(entrant, AXIS, REWARD).mean for label, entrant in self.entrants.items()}
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


def spread(entrant: Entrant, axis: str, label: str) -> Spread:
    """A method's score where a budget is spent, over its seeds.

    Args:
        entrant: The method.
        axis: The budget.
        label: The score.

    Returns:
        Mean and standard deviation of those that came so far.
    """
    return spread_of([figure(made, axis, label) for made in entrant.attempts])


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of the values that are numbers."""
    known = [value for value in values if math.isfinite(value)]
    mean = statistics.fmean(known) if known else float("nan")
    return Spread(mean, statistics.stdev(known) if len(known) > 1 else float("nan"), len(known))


def per_update(entrant: Entrant, axis: str) -> Spread:
    """What an update costs a method: seconds, or images scored.

    Args:
        entrant: The method.
        axis: `seconds` or `evaluations`.

    Returns:
        Mean and standard deviation over its seeds.
    """
    return spread_of([made.spending[axis] / made.spending["updates"] for made in entrant.whole])


def memory(entrant: Entrant) -> int | None:
    """The most memory that a method's trainings took, bytes; None where nobody knows."""
    known = [made.memory for made in entrant.whole if made.memory is not None]
    return max(known, default=None)


def remarks(entrant: Entrant, settings: ComparisonSettings) -> list[str]:
    """What a reader of the table has to know of a method: failures, budgets not spent, a search at its edge.

    Args:
        entrant: The method.
        settings: The comparison.

    Returns:
        Clauses; none where nothing is remarkable.
    """
    found = []
    if entrant.rate is None:
        reasons = dict.fromkeys(made.failure or "no finite reward" for made in entrant.tried.values())
        return [f"failed with every learning rate: {'; '.join(reasons)}"]
    if lost := [f"{rate:g}" for rate, made in entrant.tried.items() if made.failure]:
        found.append(f"learning rate {', '.join(lost)} failed in the search")
    if failed := [made for made in entrant.attempts if made.failure]:
        found.append(f"{len(failed)} of {len(entrant.attempts)} trainings failed: {failed[0].failure}")
    for axis in AXES:
        if entrant.whole and any(axis not in made.spent for made in entrant.whole):
            limit = getattr(settings.budget, axis)
            longest = settings.budget.seconds * settings.budget.cap
            found.append(f"{limit:g} {axis} not spent within {longest:g} s")
    if len(entrant.tried) > 1 and entrant.rate in (min(entrant.tried), max(entrant.tried)):
        end = "smallest" if entrant.rate == min(entrant.tried) else "largest"
        found.append(f"its learning rate is the {end} that was tried")
    return found


def as_json(comparison: Comparison, *, config_text: str = "") -> str:
    """Everything that was found, as JSON; NaN is written as null.

    Args:
        comparison: The comparison.
        config_text: The pipeline's configuration, kept as text.

    Returns:
        JSON text.
    """
    methods = {
        label: {
            "method": asdict(entrant.contender.method),
            "learning_rate": entrant.rate,
            "remarks": remarks(entrant, comparison.settings),
            "at": {axis: {name: asdict(spread(entrant, axis, name)) for name in comparison.base} for axis in AXES},
            "seconds_per_update": asdict(per_update(entrant, "seconds")),
            "evaluations_per_update": asdict(per_update(entrant, "evaluations")),
            "memory": memory(entrant),
            "search": [asdict(made) for made in entrant.tried.values()],
            "trainings": [asdict(made) for made in entrant.attempts],
        }
        for label, entrant in comparison.entrants.items()
    }
    value = {
        "title": comparison.title,
        "model": comparison.model,
        "budget": asdict(comparison.settings.budget),
        "images": comparison.images,
        "start": dict(comparison.start),
        "base": dict(comparison.base),
        "methods": methods,
        "versions": versions(),
        "config": config_text,
    }
    return json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n"
