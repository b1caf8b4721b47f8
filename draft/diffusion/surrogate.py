"""The rollout under a plan: latents with the sampler's values and the method's gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from draft.diffusion.methods.plans import Plan
from draft.diffusion.sampling import Grid, Output, renoise, step


def sample_with_plan(
    output: Output,
    grid: Grid,
    plan: Plan,
    noise: Tensor,
    *,
    copy_noise: Tensor | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Sample so that the result carries exactly the gradient its method asks for.

    Steps before the first recorded one run under `no_grad`. DRaFT-LV then repeats the last step from n re-noised
    copies x^m = alpha sg(x0) + sigma z^m, with (alpha, sigma) of the last sampling time (arXiv 2309.17400).

    Args:
        output: The guided network.
        grid: The sampling grid of T steps.
        plan: Which steps are recorded, where the chain is cut, how many copies.
        noise: Standard normal noise, (B, C, ...); any rank.
        copy_noise: Standard normal noise of the copies, (copies * B, C, ...); needed if the plan has copies.
        checkpointing: Recompute each recorded step in the backward pass instead of keeping its activations.

    Returns:
        Final latents, ((1 + copies) * B, C, ...): the base samples first, then copy after copy.

    Raises:
        ValueError: The plan is for another number of steps, or the copies' noise does not fit.

    Note:
        The paper sums the rewards of the n + 1 samples; we take the mean over all returned latents, so that the
        learning rate does not depend on n. The copies run as one batch.
    """
    if plan.steps != grid.steps:
        raise ValueError(f"the plan has {plan.steps} steps, the grid {grid.steps}")

    def recorded_step(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        if not checkpointing:
            return step(output, grid, x, i)
        # The network draws nothing at random, so there is no RNG state to keep for the recomputation.
        after, x0 = checkpoint(step, output, grid, x, i, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
        return after, x0

    x = x0 = noise
    for i in range(grid.steps):
        if plan.cut[i]:
            x = x.detach()
        if plan.recorded[i]:
            x, x0 = recorded_step(x, i)
        else:
            with torch.no_grad():
                x, x0 = step(output, grid, x, i)
    if plan.copies == 0:
        return x
    if copy_noise is None or copy_noise.shape[0] != plan.copies * noise.shape[0]:
        raise ValueError(f"the plan's {plan.copies} copies need noise of {plan.copies * noise.shape[0]} samples")
    last = grid.steps - 1
    again = x0.detach().repeat(plan.copies, *[1] * (x0.dim() - 1))
    return torch.cat([x, recorded_step(renoise(grid, again, copy_noise, last), last)[0]])
