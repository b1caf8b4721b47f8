"""Settings of a comparison as plain frozen dataclasses; pipelines validate them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen

from draft.marks import AtMost, Inert
from draft.training.settings import CheckpointSettings, LearningSettings, TrainSettings

AXES = ("updates", "evaluations", "seconds")
"""What a training spends: updates of the weights, images scored, and seconds of training."""

Rates = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """The budget of each training, which is evaluated once each of the first three limits is reached.

    Args:
        updates: Updates of the weights.
        evaluations: Images scored by the rewards; DRaFT-LV scores its copies too, so an update costs it more of them.
        seconds: Seconds of training; sampling and scoring for the comparison itself do not count.
        cap: A training that is slow ends after `cap` times `seconds`, even if other limits have not been reached.
    """

    __pydantic_config__ = {"extra": "forbid"}
    updates: Annotated[int, Ge(1), AtMost(40)] = 200
    evaluations: Annotated[int, Ge(1), AtMost(240)] = 800
    seconds: Annotated[float, Gt(0), AtMost(40.0)] = 1200.0
    cap: Annotated[float, Ge(1)] = 3.0


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How each method's learning rate is chosen: one short training for each, and the best proper samples win.

    Args:
        share: Share of `budget.seconds` that each learning rate gets.
        seed: Seed of these trainings, other than those that are shown.
    """

    __pydantic_config__ = {"extra": "forbid"}
    share: Annotated[float, Gt(0), Le(1)] = 0.5
    seed: Annotated[int, Ge(0)] = 100


@dataclass(frozen=True, kw_only=True)
class CurveSettings:
    """The points of the curves, which the search for learning rates uses as well.

    Args:
        every: Updates between two points.
        prompts: Training prompts per point, spread over the file, one image each from the same seeds every time.
    """

    __pydantic_config__ = {"extra": "forbid"}
    every: Annotated[int, Ge(1), AtMost(5)] = 10
    prompts: Annotated[int, Ge(1), AtMost(16)] = 16


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How a trained adapter is evaluated when a budget is spent.

    Args:
        images_per_prompt: Seeds per prompt.
        batch_size: Images sampled at once, for the curves too.
    """

    __pydantic_config__ = {"extra": "forbid"}
    images_per_prompt: Annotated[int, Ge(1), AtMost(2)] = 1
    batch_size: Annotated[int, Ge(1), Inert(rounding=True), AtMost(16)] = 8


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(LearningSettings):
    """Everything about a comparison besides its model, methods, prompts and rewards.

    Args:
        learning_rates: The learning rates that each method tries.
        seeds: Seeds of the trainings that are shown; each method trains once per seed.
        budget: The budget of each training.
        search: How the learning rates are chosen.
        curve: The points of the curves.
        checkpoint: When the state of a training is written.
    """

    learning_rates: Rates = (3e-4, 1e-3, 3e-3)
    seeds: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0, 1, 2)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    curve: CurveSettings = field(default_factory=CurveSettings)
    checkpoint: Annotated[CheckpointSettings, Inert()] = field(default_factory=CheckpointSettings)


@dataclass(frozen=True, kw_only=True)
class MethodConfig(TrainSettings):
    """A method that is compared: the settings of its trainings, except their learning rate.

    Args:
        learning_rates: The learning rates that it tries.
    """

    learning_rates: Rates
