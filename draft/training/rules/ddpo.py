"""DDPO: collect paths, weigh their rewards, and make the steps of the better ones more likely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from draft.errors import DraftError
from draft.methods.ddpo import (
    Memory,
    base_distance,
    clipped_loss,
    log_density,
    noisy_steps,
    step_mean,
    weigh_rewards,
)
from draft.methods.values import DDPO
from draft.training.rules.rounds import Round, collect, minibatches
from draft.training.run import Run
from draft.training.update import Descent, take_step


class PolicyGradient:
    """The rule of DDPO; it remembers each prompt's newest rewards.

    Args:
        method: The method's value.
        run: The training.

    Raises:
        DraftError: No step has fresh noise.
    """

    def __init__(self, method: DDPO, run: Run) -> None:
        self.method, self.steps = method, noisy_steps(run.grid)
        self.memory: Memory = {}
        if not self.steps:
            raise DraftError(
                "ddpo needs at least one sampling step with fresh noise, "
                f"of which there is none in {run.grid.steps} (got sampler.eta {run.settings.sampler.eta:g})",
                hint="set sampler.eta: 1, and two steps or more",
            )

    def update(self, run: Run, step: int) -> Descent:
        """Make one update: a round, and one or more steps of the optimiser on it."""
        method, taken = self.method, collect(run)
        advantages, self.memory = weigh_rewards(
            taken.rewards,
            taken.batch.indices,
            self.memory,
            buffer=method.prompt_buffer,
            min_count=method.prompt_min_count,
            clip=method.advantage_clip,
        )
        old = {i: self._log_density(run, taken, taken.rollout.outs[i], i) for i in self.steps}
        sums, norm, steps = torch.zeros(3, device=taken.rewards.device), 0.0, 0
        parts = minibatches(
            len(taken), passes=method.inner_epochs, parts=method.minibatches, generator=run.random.method
        )
        for chosen in parts:
            run.optimizer.zero_grad(set_to_none=True)
            for some in chosen.split(run.settings.batch_size):
                for i in self.steps:
                    sums += self._accumulate(run, taken, some, i, advantages, old[i], 1 / len(chosen))
            norm = take_step(run, taken.figures, step)
            steps += 1
        ratio, clipped, distance = (sums / (method.inner_epochs * len(self.steps) * len(taken))).tolist()
        extra = {"ratio": ratio, "ratio_clipped": clipped} | ({"kl": distance} if method.kl else {})
        return Descent(taken.figures, norm, steps, extra)

    def state(self) -> Mapping[str, Any]:
        """Each prompt's newest rewards."""
        return {"rewards": {prompt: list(kept) for prompt, kept in self.memory.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.memory = state["rewards"]

    def _log_density(self, run: Run, taken: Round, out: Tensor, i: int, some: Tensor | slice = slice(None)) -> Tensor:
        x, x_next = (taken.rollout.states[j][some] for j in (i, i + 1))
        return log_density(x_next, step_mean(run.grid, x, out, i), run.grid.std[i])

    def _accumulate(
        self, run: Run, taken: Round, some: Tensor, i: int, advantages: Tensor, old: Tensor, scale: float
    ) -> Tensor:
        """Add one step's gradient of some samples; returns sums of ratio, whether it is clipped, and distance.

        One step's graph at a time, so that memory does not grow with T. The published code draws the steps in random
        order; all are added up before the optimiser moves, so the order changes nothing and is not drawn here.
        """
        batch, x, method = taken.take(some), taken.rollout.states[i][some], self.method
        out = run.output(batch, recorded=True)(x, i)
        log_ratio = self._log_density(run, taken, out, i, some) - old[some]
        losses = clipped_loss(log_ratio, advantages[some], method.clip)
        distance = torch.zeros_like(losses)
        if method.kl:
            with torch.no_grad():
                base = run.output(batch, adapted=False)(x, i)
            distance = base_distance(run.grid, x, out, base, i)
        (scale / len(self.steps) * (losses + method.kl * distance).sum()).backward()
        ratio = log_ratio.detach().exp()
        return torch.stack([ratio.sum(), ((ratio - 1).abs() > method.clip).sum(), distance.detach().sum()])
