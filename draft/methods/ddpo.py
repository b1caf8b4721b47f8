"""DDPO (Black et al., arXiv 2305.13301): sampling as Gaussian decisions, and the gradient of their density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from draft.diffusion.sampling import move, predict
from draft.diffusion.schedule import Grid
from draft.errors import DraftError
from draft.methods.rounds import Round, collect, minibatches
from draft.methods.run import TrainingRun, Update
from draft.methods.update import take_step
from draft.methods.values import DDPO

Memory = Mapping[int, Sequence[float]]
"""Prompt to its newest rewards, oldest first."""

SMALLEST_SPREAD = 1e-6
"""Added to the standard deviation of rewards, as in the published code."""


def noisy_steps(grid: Grid) -> list[int]:
    """The steps that have a density: those with std > 0. A last step to the clean image has none."""
    return [i for i, std in enumerate(grid.std) if std > 0]


def step_mean(grid: Grid, x: Tensor, out: Tensor, i: int) -> Tensor:
    """The mean of x_{i+1}, m_i = alpha' x0 + sqrt(sigma'^2 - std^2) e.

    Args:
        grid: The sampling grid.
        x: Latents x_i, (B, C, ...).
        out: The (guided) output there.
        i: Step.

    Returns:
        Latents, (B, C, ...).
    """
    return move(grid, *predict(grid, x, out, i), i)


def log_density(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Each sample's log N(x; mean, std^2), as a mean over elements.

    Args:
        x: Where, (B, C, ...).
        mean: Of the Gaussian, (B, C, ...).
        std: Its standard deviation, more than 0.

    Returns:
        (B,), in float32 at least: differences of 1e-4 count.

    Note:
        The density's logarithm is the sum over elements. The published code takes the mean, which makes the ratio the
        d-th root of the true one, d being the number of elements; its clip range of 1e-4 belongs to that.
    """
    precise = torch.promote_types(mean.dtype, torch.float32)
    z = (x.to(precise) - mean.to(precise)) / std
    return (-0.5 * z.square() - math.log(std) - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def clipped_loss(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Each sample's max(-A rt, -A clip(rt, 1 - c, 1 + c)) (PPO, arXiv 1707.06347, equation 7).

    At rt = 1 its gradient is -A grad log p. It is 0 where the ratio has gone too far already in the advantage's own
    direction, and only there.

    Args:
        log_ratio: log rt, the log-probability now minus the one while sampling, (B,).
        advantages: A, (B,), without gradient.
        clip: c.

    Returns:
        The losses, (B,).
    """
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def base_distance(grid: Grid, x: Tensor, out: Tensor, base: Tensor, i: int) -> Tensor:
    """Each sample's mean squared difference to the base model's prediction, DPOK's penalty (arXiv 2305.16381).

    Args:
        grid: The sampling grid.
        x: Latents x_i, (B, C, ...), without gradient.
        out: The (guided) output there.
        base: The base model's, without gradient.
        i: Step.

    Returns:
        mean (e - e_base)^2, (B,); of the output itself in flow matching, where e = x + (1 - s) v says nothing of v at
        s = 1 (ours).

    Note:
        The steps' own KL divergence has factors that depend on the step; DPOK's published code has none.
    """
    if grid.prediction != "flow":
        out, base = predict(grid, x, out, i)[1], predict(grid, x, base, i)[1]
    return (out - base).square().flatten(1).mean(1)


def weigh_rewards(
    rewards: Tensor, prompts: Sequence[int], memory: Memory, *, buffer: int, min_count: int, clip: float
) -> tuple[Tensor, dict[int, list[float]]]:
    """Advantages (R - mean) / (std + 1e-6), with each prompt's own statistics once it has enough rewards.

    Args:
        rewards: R of the update's samples, (N,).
        prompts: The number of each sample's prompt.
        memory: Earlier rewards of each prompt.
        buffer: How many of its newest rewards a prompt keeps; 0: none, the update's own statistics serve.
        min_count: How many it needs for statistics of its own.
        clip: Largest advantage.

    Returns:
        (A, (N,) in float32 on the rewards' device; the memory with these rewards).
    """
    values = rewards.double().cpu()  # equal rewards have the spread 0 exactly, so that they teach nothing
    remembered = {prompt: list(newest) for prompt, newest in memory.items()}
    if buffer:
        for prompt, value in zip(prompts, values.tolist(), strict=True):
            remembered[prompt] = [*remembered.get(prompt, ()), value][-buffer:]
    advantages = torch.empty_like(values)
    for n, prompt in enumerate(prompts):
        newest = remembered.get(prompt, ())
        reference = torch.tensor(newest, dtype=torch.float64) if buffer and len(newest) >= min_count else values
        advantages[n] = (values[n] - reference.mean()) / (reference.std(correction=0) + SMALLEST_SPREAD)
    return advantages.clamp(-clip, clip).to(rewards.device, torch.float32), remembered


class Rule:
    """The rule of DDPO; it remembers each prompt's newest rewards.

    Args:
        method: The method's value.
        run: The training.

    Raises:
        DraftError: No step has fresh noise.
    """

    def __init__(self, method: DDPO, run: TrainingRun) -> None:
        self.method, self.steps = method, noisy_steps(run.grid)
        self.memory: Memory = {}
        if not self.steps:
            raise DraftError(
                "ddpo needs at least one sampling step with fresh noise, "
                f"of which there is none in {run.grid.steps} (got sampler.eta {run.settings.sampler.eta:g})",
                hint="set sampler.eta: 1, and two steps or more",
            )

    def update(self, run: TrainingRun, step: int) -> Update:
        """Make one update: a round, and one or more steps of the optimiser on it."""
        method, collected = self.method, collect(run)
        advantages, self.memory = weigh_rewards(
            collected.rewards,
            collected.batch.indices,
            self.memory,
            buffer=method.prompt_buffer,
            min_count=method.prompt_min_count,
            clip=method.advantage_clip,
        )
        old = {i: self._log_density(run, collected, collected.rollout.outs[i], i) for i in self.steps}
        sums, norm, steps = torch.zeros(3, device=collected.rewards.device), 0.0, 0
        parts = minibatches(
            len(collected), passes=method.inner_epochs, parts=method.minibatches, generator=run.random.method
        )
        for chosen in parts:
            run.optimizer.zero_grad(set_to_none=True)
            for some in chosen.split(run.settings.batch_size):
                for i in self.steps:
                    sums += self._accumulate(run, collected, some, i, advantages, old[i], 1 / len(chosen))
            norm = take_step(run, collected.figures, step)
            steps += 1
        ratio, clipped, distance = (sums / (method.inner_epochs * len(self.steps) * len(collected))).tolist()
        extra = {"ratio": ratio, "ratio_clipped": clipped} | ({"kl": distance} if method.kl else {})
        return Update(collected.figures, norm, steps, extra)

    def state(self) -> Mapping[str, Any]:
        """Each prompt's newest rewards."""
        return {"rewards": {prompt: list(newest) for prompt, newest in self.memory.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.memory = state["rewards"]

    def _log_density(
        self, run: TrainingRun, collected: Round, out: Tensor, i: int, some: Tensor | slice = slice(None)
    ) -> Tensor:
        x, x_next = (collected.rollout.states[j][some] for j in (i, i + 1))
        return log_density(x_next, step_mean(run.grid, x, out, i), run.grid.std[i])

    def _accumulate(
        self, run: TrainingRun, collected: Round, some: Tensor, i: int, advantages: Tensor, old: Tensor, scale: float
    ) -> Tensor:
        """Add one step's gradient of some samples; returns sums of ratio, whether it is clipped, and distance.

        One step's graph at a time, so that memory does not grow with T. The published code draws the steps in random
        order; all are added up before the optimiser moves, so the order changes nothing and is not drawn here.
        """
        batch, x, method = collected.take(some), collected.rollout.states[i][some], self.method
        out = run.output(batch, recorded=True)(x, i)
        log_ratio = self._log_density(run, collected, out, i, some) - old[some]
        losses = clipped_loss(log_ratio, advantages[some], method.clip)
        distance = torch.zeros_like(losses)
        if method.kl:
            with torch.no_grad():
                base = run.output(batch, adapted=False)(x, i)
            distance = base_distance(run.grid, x, out, base, i)
        (scale / len(self.steps) * (losses + method.kl * distance).sum()).backward()
        ratio = log_ratio.detach().exp()
        return torch.stack([ratio.sum(), ((ratio - 1).abs() > method.clip).sum(), distance.detach().sum()])
