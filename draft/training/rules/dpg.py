"""Deterministic policy gradient: fit the critic to the round's rewards, then let the sampling steps climb it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.errors import DraftError
from draft.methods.dpg import Critic, actor_loss
from draft.methods.values import DPG
from draft.training.rules.rounds import Round, collect
from draft.training.run import Run
from draft.training.update import Descent, take_step


class CriticGradient:
    """The rule of DPG; it remembers the critic, its optimiser, and the rewards' mean and spread so far.

    Args:
        method: The method's value.
        run: The training.

    Raises:
        DraftError: No step has fresh noise, or the critic has no convolution for the latents' rank.
    """

    def __init__(self, method: DPG, run: Run) -> None:
        if not run.grid.stochastic:
            raise DraftError(
                "dpg needs at least one sampling step with fresh noise, "
                f"of which there is none in {run.grid.steps} (got sampler.eta {run.settings.sampler.eta:g})",
                hint="set sampler.eta: 1, and two steps or more",
            )
        channels, *space = run.model.latent_shape(run.size)
        self.method = method
        self.critic = Critic(
            rank=len(space),
            channels=channels,
            text=run.conditioning[:1].vector(torch.float32).shape[-1],
            width=method.critic_width,
            generator=run.random.method,
        ).to(run.model.device)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=method.critic_learning_rate)
        self.rewards = torch.zeros(3, dtype=torch.float64)
        """Their number, mean, and sum of squared distances from it."""
        landing = zip(run.grid.next_alpha, run.grid.next_sigma, strict=True)
        self.levels = torch.tensor(list(landing), device=run.model.device)

    def update(self, run: Run, step: int) -> Descent:
        """Make one update: a round, the critic's steps, one step of the optimiser."""
        taken = collect(run)
        self.rewards = _extended(self.rewards, taken.rewards)
        critic_loss = self._fit(run, taken)
        count = max(1, round(self.method.share * run.grid.steps))
        steps = torch.randperm(run.grid.steps, generator=run.random.method)[:count].sort().values.tolist()
        run.optimizer.zero_grad(set_to_none=True)
        self.critic.requires_grad_(False)
        total = torch.zeros((), device=taken.rewards.device)
        for some in torch.arange(len(taken)).split(run.settings.batch_size):
            batch = taken.take(some)
            for i in steps:
                x = taken.rollout.states[i][some]
                level = self.levels[i].expand(len(some), -1)
                out = run.output(batch, recorded=True)(x, i)
                value = partial(self._value, level=level, conditioning=batch.conditioning)
                loss = actor_loss(run.grid, x, out, i, value).sum() / (len(taken) * count)
                loss.backward()
                total += loss.detach()
        self.critic.requires_grad_(True)
        norm = take_step(run, taken.figures, step)
        return Descent(taken.figures, norm, extra={"critic_loss": critic_loss, "value": -float(total)})

    def state(self) -> Mapping[str, Any]:
        """The critic, its optimiser, and the rewards' statistics."""
        critic = {name: weight.detach().cpu() for name, weight in self.critic.state_dict().items()}
        return {"critic": critic, "optimizer": self.optimizer.state_dict(), "rewards": self.rewards}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rewards = state["rewards"]

    def _value(self, x: Tensor, *, level: Tensor, conditioning: Conditioning) -> Tensor:
        guesses: Tensor = self.critic(x, level, conditioning.vector(x.dtype))
        return guesses

    def _fit(self, run: Run, taken: Round) -> float:
        """Regress (Q - R)^2 over random states of the round; returns the mean loss before each step.

        R is in standard deviations from the mean of all rewards so far, so 1 is what a critic that knows nothing has.
        """
        count, mean, squares = self.rewards.tolist()
        goals = ((taken.rewards.double() - mean) / ((squares / count) ** 0.5 or 1.0)).float()
        total = torch.zeros((), device=goals.device)
        for _ in range(self.method.critic_steps):
            shape = (self.method.critic_batch,)
            steps = torch.randint(run.grid.steps, shape, generator=run.random.method)
            samples = torch.randint(len(taken), shape, generator=run.random.method)
            x = torch.stack(
                [taken.rollout.states[i + 1][n] for i, n in zip(steps.tolist(), samples.tolist(), strict=True)]
            )
            guesses = self.critic(x, self.levels[steps], taken.batch.conditioning[samples].vector(x.dtype))
            loss = (guesses - goals[samples]).square().mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return float(total) / self.method.critic_steps


def _extended(statistics: Tensor, rewards: Tensor) -> Tensor:
    """Number, mean and sum of squared distances of more rewards (Chan et al., 1979)."""
    count, mean, squares = statistics.tolist()
    new = rewards.double().cpu()
    total = count + len(new)
    difference = float(new.mean()) - mean
    spread = squares + float((new - new.mean()).square().sum()) + difference**2 * count * len(new) / total
    return torch.tensor([total, mean + difference * len(new) / total, spread], dtype=torch.float64)
