"""Optimising the noise that sampling starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.diffusion.control.search import Samples, keep_better
from draft.diffusion.control.values import NoiseOpt
from draft.diffusion.linear import linear_form
from draft.diffusion.sampling import Output, check_fresh, step
from draft.diffusion.schedule import Grid
from draft.diffusion.surrogate import checkpointed

RewardGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Clean latents (B, C, ...) -> R of each, (B,), and dR / dlatents, (B, C, ...)."""


@dataclass(frozen=True)
class Optimised(Samples):
    """The best sample of each optimisation.

    Args:
        noise: What they were sampled from, like `latents`.
        iterations: When each was found, from 0, (B,).
    """

    noise: Tensor
    iterations: Tensor


def optimise_noise(
    output: Output,
    grid: Grid,
    z: Tensor,
    reward: RewardGradient,
    method: NoiseOpt,
    *,
    fresh: Sequence[Tensor] | None = None,
) -> Optimised:
    """Descend on L(z) = -R(x_T(z)) + l (|z|^2 / 2 - (d - 1) ln |z|) and keep the best R (ReNO, arXiv 2406.04312).

    The second term is minus the log density of the length of d standard normal numbers, with its minimum at
    |z| = sqrt(d - 1). Gradient descent is PyTorch's SGD with Nesterov momentum: v <- m v + g, z <- z - lr (g + m v),
    with |g| clipped before. Each image is an optimisation of its own, whatever it is batched with.

    Args:
        output: The guided network.
        grid: The sampling grid.
        z: Standard normal noise, (B, C, ...).
        reward: R and its gradient at final latents.
        method: The options.
        fresh: Standard normal noise of each step where the grid is stochastic; the same in every iteration.

    Returns:
        The best of all iterations, so never worse than the sample of `z`.

    Note:
        ReNO has one-step models; the chain through several steps is recomputed step by step in the backward pass
        (`checkpointed`). DOODL (arXiv 2303.13703) gets that gradient by inverting its sampler and also clips each
        element and adds noise; of it, `keep_norm` is here. `recorded` is ours: the steps before hold the velocity
        fixed, so the chain through them is a number.
    """
    check_fresh(grid, fresh)
    d = z[0].numel()
    cut = 0 if method.recorded is None else grid.steps - method.recorded
    carry = linear_form(grid, "velocity").weights(0, cut)[0]
    length, v = _norm(z), torch.zeros_like(z)
    best: Optimised | None = None
    for iteration in range(method.iterations):
        with torch.no_grad():
            x = _run(output, grid, z, 0, cut, fresh)
        start = x.detach().requires_grad_(iteration < method.iterations - 1)
        with torch.set_grad_enabled(start.requires_grad):
            final = _run(checkpointed(output) if start.requires_grad else output, grid, start, cut, grid.steps, fresh)
        rewards, q = reward(final.detach())
        best = keep_better(best, Optimised(final.detach(), rewards, z, torch.full_like(rewards, iteration)))
        if not start.requires_grad:
            break
        g = -carry * torch.autograd.grad(final, start, q)[0]
        g = g + method.regulariser * z * (1 - (d - 1) / _norm(z) ** 2)
        if method.max_grad_norm:
            g = g * (method.max_grad_norm / _norm(g).clamp(min=method.max_grad_norm))
        v = method.momentum * v + g
        z = z - method.learning_rate * (g + method.momentum * v)
        if method.keep_norm:
            z = z * (length / _norm(z))
    assert best is not None
    return best


def _run(output: Output, grid: Grid, x: Tensor, start: int, stop: int, fresh: Sequence[Tensor] | None) -> Tensor:
    for i in range(start, stop):
        x, _ = step(output, grid, x, i, fresh[i] if fresh is not None else None)
    return x


def _norm(x: Tensor) -> Tensor:
    """Each sample's L2 norm, (B, 1, ...)."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
