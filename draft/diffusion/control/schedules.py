"""In which sampling steps an adapter takes part, as values: frozen dataclasses that pydantic validates. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from draft.diffusion.settings import STEPS
from draft.marks import AtMost, ShareOf


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The adapter takes part in every step."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["constant"] = "constant"


@dataclass(frozen=True, kw_only=True)
class LastSteps:
    """The base model draws until the adapter takes over for the last steps.

    Args:
        steps: How many, 1 to the sampler's number of steps.
    """

    __pydantic_config__ = {"extra": "forbid"}
    steps: Annotated[int, Ge(1), ShareOf(STEPS, least=1)]
    kind: Literal["last_steps"] = "last_steps"


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """The adapter's share grows from step to step (annealed importance guidance, NVIDIA NeMo-Aligner, DRaFT+).

    Args:
        power: p of the share (i / T)^p after i of T steps; 0 is the tuned model.
        threshold: Instead of `power`: the share is 0 while i / T is below this number, then 1.
    """

    __pydantic_config__ = {"extra": "forbid"}
    power: Annotated[float, Ge(0)] | None = None
    threshold: Annotated[float, Gt(0), Le(1)] | None = None
    kind: Literal["annealed"] = "annealed"


@dataclass(frozen=True, kw_only=True)
class Combined:
    """The base model draws the first steps with guidance, the tuned one the others (ImageReFL's combined generation).

    Args:
        base_steps: Steps of the base model, 0 to the sampler's number of steps.
        guidance_scale: Guidance scale of the tuned steps; 1, as published, does not compute the unconditional branch.
    """

    __pydantic_config__ = {"extra": "forbid"}
    base_steps: Annotated[int, Ge(0), ShareOf(STEPS)]
    guidance_scale: Annotated[float, Ge(1), AtMost(2.0)] = 1.0
    kind: Literal["combined"] = "combined"


AdapterSchedule = Constant | LastSteps | Annealed | Combined


def schedule_words(schedule: AdapterSchedule | None) -> str:
    """A schedule as a page says it: ``"last steps, steps 5"``; empty where the adapter takes part in every step."""
    if schedule is None or isinstance(schedule, Constant):
        return ""
    options = {option.name: getattr(schedule, option.name) for option in fields(schedule) if option.name != "kind"}
    words = [f"{name.replace('_', ' ')} {value:g}" for name, value in options.items() if value is not None]
    return ", ".join([schedule.kind.replace("_", " "), *words])
