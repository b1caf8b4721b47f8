"""What a method hands to the rewards: latents with the sampler's values and the method's own gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from draft.diffusion.linear import linear_form
from draft.diffusion.plan import Plan
from draft.diffusion.sampling import Output, check_fresh, move, predict, renoise
from draft.diffusion.schedule import Grid


@dataclass(frozen=True)
class Denoisers:
    """The guided network as a method calls it.

    Args:
        no_grad: For values alone; always called without autograd.
        with_grad: For calls that carry gradient, with whatever belongs to them: the policy of guidance,
            checkpointing, a penalty.
    """

    no_grad: Output
    with_grad: Output

    def call(self, x: Tensor, i: int, *, recorded: bool) -> Tensor:
        """The output at (x, i), with gradient or as a constant."""
        if recorded:
            return self.with_grad(x, i)
        with torch.no_grad():
            return self.no_grad(x, i)


@dataclass(frozen=True)
class Group:
    """How B latents in a row are scored: R = sum_k coefficient_k r(image, prefix_k + prompt).

    Args:
        views: (prefix, coefficient) of each time the images are scored.
        weights: Each sample's factor in the loss, (B,), without gradient; None: 1.
    """

    views: tuple[tuple[str, float], ...] = (("", 1.0),)
    weights: Tensor | None = None


@dataclass(frozen=True)
class Surrogate:
    """Latents to be scored, group after group of B.

    Args:
        latents: (groups B, C, ...), with the method's graph.
        groups: How each B of them are scored.
    """

    latents: Tensor
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Rollout:
    """A whole rollout without gradient, kept step by step.

    Args:
        states: x_0 .. x_T, T + 1 tensors (B, C, ...).
        outs: The guided output at each of the first T.
    """

    states: tuple[Tensor, ...]
    outs: tuple[Tensor, ...]


def checkpointed(output: Output) -> Output:
    """Recompute each call in the backward pass instead of keeping its activations."""
    # The network draws nothing at random, so there is no RNG state to keep for the recomputation.
    return lambda x, i: checkpoint(output, x, i, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]


def roll_out(output: Output, grid: Grid, noise: Tensor, fresh: Sequence[Tensor] | None = None) -> Rollout:
    """Sample without gradient and keep every state and output.

    Args:
        output: The guided network.
        grid: The sampling grid of T steps.
        noise: Standard normal noise, (B, C, ...).
        fresh: Standard normal noise of each step where the grid is stochastic.

    Returns:
        The rollout.
    """
    check_fresh(grid, fresh)
    states, outs = [noise], []
    with torch.no_grad():
        for i in range(grid.steps):
            outs.append(output(states[-1], i))
            x0, e = predict(grid, states[-1], outs[-1], i)
            states.append(move(grid, x0, e, i, fresh[i] if fresh is not None else None))
    return Rollout(tuple(states), tuple(outs))


def sample_with_plan(
    denoisers: Denoisers,
    grid: Grid,
    plan: Plan,
    noise: Tensor,
    *,
    fresh: Sequence[Tensor] | None = None,
    copy_noise: Tensor | None = None,
) -> Tensor:
    """Sample so that the result carries exactly the gradient its method asks for.

    Outputs of steps that are not recorded are constants. DRaFT-LV repeats the last step from n re-noised
    copies x^m = alpha sg(x0) + sigma z^m, with (alpha, sigma) of the last sampling time (arXiv 2309.17400).

    Args:
        denoisers: The guided network.
        grid: The sampling grid of T steps.
        plan: Which steps are recorded, where the chain is cut, where the rollout ends, how many copies.
        noise: Standard normal noise, (B, C, ...); any rank.
        fresh: Standard normal noise of each step, T tensors like `noise`; needed where the grid is stochastic.
        copy_noise: Standard normal noise of the copies, (copies * B, C, ...); needed if the plan has copies.

    Returns:
        Final latents, ((1 + copies) * B, C, ...): the base samples first, then copy after copy.

    Raises:
        ValueError: The plan is for another number of steps, or noise is missing or does not fit.

    Note:
        The paper sums the rewards of the n + 1 samples; we take the mean over all returned latents, so that the
        learning rate does not depend on n. The copies run as one batch.
    """
    if plan.steps != grid.steps:
        raise ValueError(f"the plan has {plan.steps} steps, the grid {grid.steps}")
    check_fresh(grid, fresh)
    form = None if plan.jacobians else linear_form(grid, plan.frozen)

    def step(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Where step i lands, and its prediction of the clean latent."""
        if form is None:
            x0, e = predict(grid, x, denoisers.call(x, i, recorded=plan.recorded[i]), i)
            return move(grid, x0, e, i, fresh[i] if fresh is not None else None), x0
        constant = x.detach()
        slope = form.slope(constant, denoisers.call(constant, i, recorded=plan.recorded[i]), i)
        return form.carry[i] * x + form.gain[i] * slope, form.clean(x, slope, i)

    x = x0 = noise
    for i in range(grid.steps if plan.stop is None else plan.stop + 1):
        x, x0 = step(x.detach() if plan.cut[i] else x, i)
    if plan.stop is not None:
        return x0
    if plan.copies == 0:
        return x
    if copy_noise is None or copy_noise.shape[0] != plan.copies * noise.shape[0]:
        raise ValueError(f"the plan's {plan.copies} copies need noise of {plan.copies * noise.shape[0]} samples")
    last = grid.steps - 1
    again = x0.detach().repeat(plan.copies, *[1] * (x0.dim() - 1))
    return torch.cat([x, step(renoise(grid, again, copy_noise, last), last)[0]])
