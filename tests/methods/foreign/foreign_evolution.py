"""A method that Draft does not have, value and rule in one file: a random direction in the weights, both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from draft.diffusion.settings import STEPS
from draft.diffusion.surrogate import roll_out
from draft.errors import Problem
from draft.marks import AtMost
from draft.methods.run import TrainingRun, Update
from draft.methods.update import take_step
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Climb the reward along a random direction of the weights, without any gradient (evolution strategies).

    Args:
        radius: How far the weights are moved both ways.
        reach: Directions of an update.
        memory: Share of the old mean difference in the one that the next update is measured by.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(reward_gradient=False, backpropagates=False)
    module: ClassVar[str] = __name__
    kind: Literal["evolution"] = "evolution"
    radius: Annotated[float, Gt(0)] = 0.05
    reach: Annotated[int, Ge(1), AtMost(STEPS)] = 2
    memory: Annotated[float, Ge(0)] = 0.5

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """More directions than images have steps, which nobody needs; and a memory that does not fade."""
        if self.reach > settings.sampler.num_inference_steps:
            what = f"method.reach must be at most sampler.num_inference_steps (got {self.reach})"
            yield Problem(("method", "reach"), what, "an example's own rule")
        if self.memory >= 1:
            yield Problem(("method", "memory"), f"method.memory must be less than 1 (got {self.memory:g})", "0.5")


class Rule:
    """The rule of `Evolution`; it remembers how much a direction usually changes the reward."""

    def __init__(self, method: Evolution, run: TrainingRun) -> None:
        self.method, self.usual = method, 0.0

    def update(self, run: TrainingRun, step: int) -> Update:
        """Make one update."""
        batch, figures = run.next_batch(), []
        run.optimizer.zero_grad(set_to_none=True)
        changes = []
        for _ in range(self.method.reach):
            direction = [torch.randn(p.shape, generator=run.random.method).to(p) for p in run.parameters]
            ends = []
            for sign in (1, -2):
                self._move(run.parameters, direction, sign)
                rollout = roll_out(run.output(batch), run.grid, batch.noise, batch.fresh)
                scored = run.scorer.score(rollout.states[-1], batch.prompts)
                figures.append(scored.figures)
                ends.append(scored.rewards.mean())
            self._move(run.parameters, direction, 1)
            change = float(ends[0] - ends[1])
            changes.append(abs(change))
            for parameter, part in zip(run.parameters, direction, strict=True):
                gradient = -change / (self.usual or 1.0) * part / self.method.reach
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.usual = self.method.memory * self.usual + (1 - self.method.memory) * sum(changes) / len(changes)
        return Update(figures, take_step(run, figures, step), extra={"usual": self.usual})

    def state(self) -> Mapping[str, Any]:
        """The usual change."""
        return {"usual": self.usual}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a usual change."""
        self.usual = state["usual"]

    def _move(self, parameters: list[torch.nn.Parameter], direction: list[Tensor], sign: int) -> None:
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.add_(part, alpha=sign * self.method.radius)
