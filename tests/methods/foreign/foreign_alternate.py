"""A method that Draft does not have, value and plan in one file: every second of the last sampling steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from draft.diffusion.plan import Plan, at_steps
from draft.diffusion.settings import STEPS
from draft.errors import Problem
from draft.marks import AtMost
from draft.methods.values.steps import too_many_steps
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class Alternate:
    """Backpropagate through every second one of the last `reach` sampling steps.

    Args:
        reach: How far back from the last step, 1 to the sampler's number of steps.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    module: ClassVar[str] = __name__
    kind: Literal["alternate"] = "alternate"
    reach: Annotated[int, Ge(1), AtMost(STEPS)] = 3

    def problems(self, settings: Any) -> Iterator[Problem]:
        """More steps than the sampler has."""
        return too_many_steps("reach", self.reach, settings)


def plan(method: Alternate, steps: int, generator: Any) -> Plan:
    """Record the last step, the last but two, and so on; the others are constants in an unbroken chain."""
    chosen = range(steps - 1, steps - 1 - method.reach, -2)
    return Plan(recorded=at_steps(chosen, steps), cut=at_steps({chosen[-1]} - {0}, steps))
