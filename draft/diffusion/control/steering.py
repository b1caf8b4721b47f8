"""Sampling steered by a reward's gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from draft.diffusion.control.noise import RewardGradient
from draft.diffusion.control.values import Guided
from draft.diffusion.sampling import Output, check_fresh, move, predict
from draft.diffusion.schedule import Grid


def steer(
    output: Output,
    grid: Grid,
    x: Tensor,
    reward: RewardGradient,
    method: Guided,
    *,
    fresh: Sequence[Tensor] | None = None,
    again: Sequence[Tensor] = (),
) -> Tensor:
    """Sample with e <- e - sigma_i q, q = grad_x [w R(x0(x))] (Universal Guidance, arXiv 2302.07121).

    Under `scale: rms`, e <- e - w rms(e) q / rms(q), per image. A step whose start has no signal (s = 1 in flow
    matching) says nothing of the image yet and stays as it is. With `recurrence` k each guided step is made k times; in
    between the latents go back to its start, x <- (alpha / alpha') x' + sqrt(sigma^2 - (alpha / alpha')^2 sigma'^2) z.

    Args:
        output: The network with classifier-free guidance.
        grid: The sampling grid.
        x: Standard normal noise, (B, C, ...).
        reward: R and its gradient at predicted clean latents.
        method: The options.
        fresh: Standard normal noise of each step where the grid is stochastic.
        again: Standard normal noise of the repetitions, (k - 1) T tensors like `x`.

    Returns:
        Final latents, (B, C, ...).

    Note:
        FreeDoM (arXiv 2303.09833) moves x' instead of e and ties the length to the guidance term or to e, times a
        coefficient of its stochastic step; `scale: rms` takes e. `jacobian: false` holds e fixed: q = w dR/dx0 / alpha.
    """
    check_fresh(grid, fresh)
    steps, k = grid.steps, method.recurrence
    with torch.no_grad():
        for i in range(steps):
            steered = grid.alpha[i] > 0 and method.start <= i / steps < method.stop
            z = fresh[i] if fresh is not None else None
            for repetition in range(k if steered else 1):
                if repetition:
                    x = _back(grid, x, i, again[i * (k - 1) + repetition - 1])
                out = _steered(output, grid, x, i, reward, method) if steered else output(x, i)
                x0, e = predict(grid, x, out, i)
                x = move(grid, x0, e, i, z)
    return x


def _steered(output: Output, grid: Grid, x: Tensor, i: int, reward: RewardGradient, method: Guided) -> Tensor:
    """The network's output with the reward's gradient in it."""
    alpha, sigma = grid.alpha[i], grid.sigma[i]
    with torch.set_grad_enabled(method.jacobian):
        leaf = x.detach().requires_grad_(method.jacobian)
        out = output(leaf, i)
        x0, e = predict(grid, leaf, out, i)
    _, q = reward(x0.detach())
    q = torch.autograd.grad(x0, leaf, q)[0] if method.jacobian else q / alpha
    delta = sigma * q if method.scale == "raw" else _rms(e.detach()) * q / _rms(q).clamp(min=torch.finfo(q.dtype).tiny)
    # Where the network predicts v, e = ... + alpha out.
    return out.detach() - method.weight * (delta if grid.prediction == "epsilon" else delta / alpha)


def _back(grid: Grid, x: Tensor, i: int, z: Tensor) -> Tensor:
    """From where step i lands to where it starts."""
    ratio = grid.alpha[i] / grid.next_alpha[i]
    return ratio * x + math.sqrt(max(0.0, grid.sigma[i] ** 2 - (ratio * grid.next_sigma[i]) ** 2)) * z


def _rms(x: Tensor) -> Tensor:
    """Each sample's root mean square, (B, 1, ...)."""
    return x.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (x.dim() - 1))
