"""The gradient of a whole chain taken apart: what each step adds to it, with one step's graph in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.diffusion.sampling import Output, check_fresh, step
from draft.diffusion.schedule import Grid
from draft.diffusion.surrogate import Rollout


@dataclass(frozen=True)
class Chain:
    """The gradient of one batch of rollouts through T steps.

    Args:
        truncated: g_K for K = 1..T, the gradient of DRaFT-K, on the CPU, (T, P); the last row is the full gradient.
        terms: |lam_{i+1}^T dF_i/dtheta| of each step i, (T,).
        adjoints: |lam_i| for i = 0..T, over the whole batch, (T + 1,).
    """

    truncated: Tensor
    terms: Tensor
    adjoints: Tensor


def decompose_gradient(
    output: Output,
    grid: Grid,
    rollout: Rollout,
    slope: Tensor,
    parameters: Sequence[Tensor],
    *,
    fresh: Sequence[Tensor] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Chain:
    """Backpropagate through a cached rollout, last step first, and keep the sum after each step.

    dJ/dtheta = sum_i lam_{i+1}^T dF_i/dtheta with lam_T = dJ/dx_T and lam_i = (dF_i/dx_i)^T lam_{i+1}; the last K
    terms are the gradient g_K of DRaFT-K (arXiv 2309.17400). Step i is recorded at the cached x_i alone: the memory
    is that of one step, and T times the parameters on the CPU.

    Args:
        output: The guided network, with whatever belongs to calls that carry gradient.
        grid: The sampling grid of T steps.
        rollout: What the same network sampled on it.
        slope: lam_T = dJ/dx_T, (B, C, ...).
        parameters: theta, with P numbers in all; one without effect in a step adds nothing there.
        fresh: The rollout's noise of each step where the grid is stochastic; it does not depend on theta.
        advance: Called after each step.

    Returns:
        The chain.
    """
    check_fresh(grid, fresh)
    lam, norms, terms, sums = slope, [slope.norm()], [], []
    for i in reversed(range(grid.steps)):
        x = rollout.states[i].detach().requires_grad_()
        with torch.enable_grad():
            landed, _ = step(output, grid, x, i, fresh[i] if fresh is not None else None)
        lam, *parts = torch.autograd.grad(
            landed, [x, *parameters], grad_outputs=lam, allow_unused=True, materialize_grads=True
        )
        term = torch.cat([part.flatten() for part in parts]).cpu()
        terms.insert(0, term.norm())
        norms.insert(0, lam.norm())
        sums.append(sums[-1] + term if sums else term)
        advance()
    return Chain(torch.stack(sums), torch.stack(terms), torch.stack(norms).cpu())


def cosines(truncated: Tensor) -> Tensor:
    """How far each truncated gradient points where the full one does, cos(g_K, g_T).

    Args:
        truncated: g_K for K = 1..T, (T, P).

    Returns:
        T numbers in [-1, 1], the last one 1; 0 where g_K is 0.
    """
    return torch.cosine_similarity(truncated, truncated[-1:], dim=1)


def agreement(mean: Tensor, norms: Tensor) -> Tensor:
    """How far the gradients of several batches agree: |mean_b g^b| / mean_b |g^b|.

    Ours: 1 where all are the same; 1 / sqrt(n) is what n independent directions of one length come to.

    Args:
        mean: The gradient's mean over batches for each K, (T, P).
        norms: Each batch's norm for each K, (batches, T).

    Returns:
        T numbers in [0, 1]; not a number where every gradient is 0.
    """
    return mean.norm(dim=1) / norms.mean(dim=0)
