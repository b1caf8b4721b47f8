"""Deterministic policy gradient: each sampling step climbs a critic's guess of the final reward.

The DRaFT paper (Clark et al., arXiv 2309.17400) reports that such a method did worse than DRaFT, and nothing of how it
was made. Everything here is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.sampling import move, predict
from draft.diffusion.schedule import Grid
from draft.errors import DraftError
from draft.methods.rounds import Round, collect
from draft.methods.run import TrainingRun, Update
from draft.methods.update import take_step
from draft.methods.values import DPG

Value = Callable[[Tensor], Tensor]
"""Latents after a step, (B, C, ...), to a guess of each one's final reward, (B,)."""


def actor_loss(grid: Grid, x: Tensor, out: Tensor, i: int, value: Value) -> Tensor:
    """Each sample's -Q(x', i + 1, c) at the mean x' of step i.

    Its gradient is -(dQ/dx')^T dF_i/dtheta. With dQ/dx' the exact derivative of the final reward, which is DRaFT's
    adjoint lam_{i+1}, the sum over i is full DRaFT; with R itself at the last step alone it is DRaFT-1.

    Args:
        grid: The sampling grid.
        x: Latents x_i, (B, C, ...), without gradient.
        out: The (guided) output there.
        i: Step.
        value: Q(., i + 1, c).

    Returns:
        (B,).
    """
    return -value(move(grid, *predict(grid, x, out, i), i))


class Critic(nn.Module):
    """Guesses the final reward from a latent, its noise level and its prompt: three convolutions, then a mean.

    Args:
        rank: Number of dimensions behind the channels: 1, 2 or 3.
        channels: Channels C of the latents.
        text: Length F of a prompt's conditioning as a vector.
        width: Channels of the critic.
        generator: Of its first weights, on the CPU.

    Raises:
        DraftError: There is no convolution of this rank.
    """

    def __init__(self, *, rank: int, channels: int, text: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        if rank not in kinds:
            raise DraftError(
                f"dpg needs latents with 1, 2 or 3 dimensions behind the channels (got {rank})",
                hint="ddpo and best_of_n take latents of any rank",
            )
        convolution = kinds[rank]
        # Without torch's own first weights, which would come from its global generator.
        self.condition = nn.utils.skip_init(nn.Linear, text + 2, width)
        self.layers = nn.ModuleList(
            nn.utils.skip_init(convolution, size, width, 3, stride=stride, padding=1)
            for size, stride in ((channels, 1), (width, 2), (width, 2))
        )
        self.last = nn.utils.skip_init(nn.Linear, width, 1)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                inputs = self.get_parameter(name.replace("bias", "weight"))[0].numel()
                bound = 1 / math.sqrt(inputs)
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """Guess.

        Args:
            x: Latents, (B, C, ...).
            level: Their (alpha, sigma), (B, 2).
            text: The prompts' conditioning as vectors, (B, F).

        Returns:
            Q, (B,).
        """
        pooled = nn.functional.layer_norm(text.to(x.dtype), text.shape[-1:])
        condition = self.condition(torch.cat([pooled, level], dim=1)).reshape(len(x), -1, *[1] * (x.dim() - 2))
        for layer in self.layers:
            x = nn.functional.silu(layer(x) + condition)
        return self.last(x.flatten(2).mean(2)).squeeze(1)


class Rule:
    """The rule of DPG; it remembers the critic, its optimiser, and the rewards' mean and spread so far.

    Args:
        method: The method's value.
        run: The training.

    Raises:
        DraftError: No step has fresh noise, or the critic has no convolution for the latents' rank.
    """

    def __init__(self, method: DPG, run: TrainingRun) -> None:
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
            text=run.unconditional.vector(torch.float32).shape[-1],
            width=method.critic_width,
            generator=run.random.method,
        ).to(run.model.device)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=method.critic_learning_rate)
        self.rewards = torch.zeros(3, dtype=torch.float64)
        """Their number, mean, and sum of squared distances from it."""
        landing = zip(run.grid.next_alpha, run.grid.next_sigma, strict=True)
        self.levels = torch.tensor(list(landing), device=run.model.device)

    def update(self, run: TrainingRun, step: int) -> Update:
        """Make one update: a round, the critic's steps, one step of the optimiser."""
        collected = collect(run)
        self.rewards = _extended(self.rewards, collected.rewards)
        critic_loss = self._fit(run, collected)
        count = max(1, round(self.method.share * run.grid.steps))
        steps = torch.randperm(run.grid.steps, generator=run.random.method)[:count].sort().values.tolist()
        run.optimizer.zero_grad(set_to_none=True)
        self.critic.requires_grad_(False)
        total = torch.zeros((), device=collected.rewards.device)
        for some in torch.arange(len(collected)).split(run.settings.batch_size):
            batch = collected.take(some)
            for i in steps:
                x = collected.rollout.states[i][some]
                level = self.levels[i].expand(len(some), -1)
                out = run.output(batch, recorded=True)(x, i)
                value = partial(self._value, level=level, conditioning=batch.conditioning)
                loss = actor_loss(run.grid, x, out, i, value).sum() / (len(collected) * count)
                loss.backward()
                total += loss.detach()
        self.critic.requires_grad_(True)
        norm = take_step(run, collected.figures, step)
        return Update(collected.figures, norm, extra={"critic_loss": critic_loss, "value": -float(total)})

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

    def _fit(self, run: TrainingRun, collected: Round) -> float:
        """Regress (Q - R)^2 over random states of the round; returns the mean loss before each step.

        R is in standard deviations from the mean of all rewards so far, so 1 is what a critic that knows nothing has.
        """
        count, mean, squares = self.rewards.tolist()
        goals = ((collected.rewards.double() - mean) / ((squares / count) ** 0.5 or 1.0)).float()
        total = torch.zeros((), device=goals.device)
        for _ in range(self.method.critic_steps):
            shape = (self.method.critic_batch,)
            steps = torch.randint(run.grid.steps, shape, generator=run.random.method)
            samples = torch.randint(len(collected), shape, generator=run.random.method)
            x = torch.stack(
                [collected.rollout.states[i + 1][n] for i, n in zip(steps.tolist(), samples.tolist(), strict=True)]
            )
            guesses = self.critic(x, self.levels[steps], collected.batch.conditioning[samples].vector(x.dtype))
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
