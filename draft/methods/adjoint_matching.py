"""Adjoint Matching (arXiv 2409.08861): the lean adjoint of a rollout, and the regression of each step onto it.

The target is p_base(x) exp(lam R(x)). Notation of the grid: step i has the mean m_i(x) and adds noise of std_i. The
discrete form is used throughout, for diffusion and flow models alike: no step size enters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.diffusion.sampling import Output, move, predict
from draft.diffusion.schedule import Grid
from draft.errors import DraftError
from draft.methods.values import AdjointMatching

DECAY = 0.9
"""Of the running mean of the terms' quantile, as in the authors' code."""


@dataclass(frozen=True)
class Target:
    """What a step is regressed onto.

    Args:
        step: The step i.
        mean: m_i of the base model at the rollout's x_i, (B, C, ...).
        adjoint: a_{i+1}, (B, C, ...).
    """

    step: int
    mean: Tensor
    adjoint: Tensor


def noisy_steps(grid: Grid) -> list[int]:
    """The steps that add noise, which are those that can be regressed; the one to the clean image cannot.

    Args:
        grid: The sampling grid.

    Returns:
        Steps in order.

    Raises:
        DraftError: There is none.
    """
    noisy = [i for i, std in enumerate(grid.std) if std > 0]
    if not noisy:
        raise DraftError(
            f"adjoint_matching needs a sampling step that adds noise (got {grid.steps} without)",
            hint="sampler: {eta: 1}, and at least 2 steps",
        )
    return noisy


def draw_steps(method: AdjointMatching, grid: Grid, generator: torch.Generator) -> tuple[int, ...]:
    """Draw the steps of a rollout that are regressed, some early and some late ones, none twice.

    Args:
        method: How many of which.
        grid: The sampling grid of T steps.
        generator: Of the draws, on the CPU.

    Returns:
        Steps that add noise, in order; where the method's numbers leave none, the last of them.
    """
    noisy, middle = noisy_steps(grid), round(method.boundary * grid.steps)

    def some(steps: list[int], count: int) -> list[int]:
        return [steps[k] for k in torch.randperm(len(steps), generator=generator).tolist()[:count]]

    early = some([i for i in noisy if i < middle], method.early)
    late = some([i for i in noisy if i >= middle], method.late)
    return tuple(sorted(early + late or noisy[-1:]))


def step_mean(output: Output, grid: Grid, x: Tensor, i: int) -> Tensor:
    """The mean m_i of step i at x, (B, C, ...), in the caller's gradient mode."""
    return move(grid, *predict(grid, x, output(x, i), i), i)


def pull_back(base: Output, grid: Grid, x: Tensor, a: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """One step of the lean adjoint, a_i = (dm_i/dx)^T a_{i+1}, with the base model's m (arXiv 2409.08861).

    The control's own derivative is left out: that is what makes the adjoint lean.

    Args:
        base: The base model's output.
        grid: The sampling grid.
        x: The rollout's x_i, (B, C, ...).
        a: a_{i+1}, like `x`.
        i: Step.

    Returns:
        (m_i(x), a_i), both without graph.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        mean = step_mean(base, grid, leaf, i)
        (before,) = torch.autograd.grad(mean, leaf, a)
    return mean.detach(), before


def lean_adjoint(base: Output, grid: Grid, states: Sequence[Tensor], last: Tensor, first: int = 0) -> Iterator[Target]:
    """Follow the lean adjoint along a rollout from its end, holding one step's graph at a time.

    Args:
        base: The base model's output, without guidance (ours as in the authors' code: with it the adjoint explodes).
        grid: The sampling grid of T steps.
        states: The rollout x_0 .. x_T, each (B, C, ...).
        last: a_T = -lam dR/dx_T, (B, C, ...).
        first: The first step that is wanted.

    Yields:
        The targets of steps T - 1, T - 2, .., `first`.
    """
    a = last
    for i in reversed(range(first, grid.steps)):
        mean, before = pull_back(base, grid, states[i], a, i)
        yield Target(i, mean, a)
        a = before


def matching_loss(mean: Tensor, target: Target, std: float) -> Tensor:
    """How far a step's control is from the optimal one, |(m - m_base) / std + std a_{i+1}|^2.

    Args:
        mean: m_i of the network that learns, at the same x_i, (B, C, ...).
        target: The step's target.
        std: Standard deviation of the step's noise, > 0.

    Returns:
        The term of each sample, a sum over its elements, (B,).

    Note:
        The authors' code takes a_i in place of a_{i+1}. In discrete time a_{i+1} is right: with Gaussian data and a
        linear R it gives the target's mean exactly where the first level is pure noise, and a_i does not.
    """
    return ((mean - target.mean) / std + std * target.adjoint).square().flatten(1).sum(1)


def running_quantile(before: float | None, terms: Tensor, quantile: float) -> float:
    """Move the running quantile of the terms' roots on by one batch: the first one, then 0.9 old + 0.1 new.

    Args:
        before: Its value so far; None: there was no batch.
        terms: Terms of a batch, any shape.
        quantile: Which quantile, 0..1.

    Returns:
        The new value.

    Note:
        The authors' code averages the first two batches with equal weights.
    """
    now = float(torch.quantile(terms.flatten().sqrt(), quantile))
    return now if before is None else DECAY * before + (1 - DECAY) * now
