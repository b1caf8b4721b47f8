"""FlowBP-Sparse (arXiv 2606.11075): a few steps of a cached rollout called again, and their slopes summed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from draft.diffusion.linear import LinearForm, linear_form
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule
from draft.diffusion.straight_through import scaled, st
from draft.diffusion.surrogate import Denoisers, Group, Rollout, Surrogate
from draft.methods.leap_align import recorded_slope
from draft.methods.random_steps import draw_active
from draft.methods.values import FlowBPSparse
from draft.methods.values.steps import tail_length


def call_grid(method: FlowBPSparse, schedule: Schedule | FlowSchedule, grid: Grid) -> Grid:
    """The sampler's grid, if it has a straight path with the slope that is held fixed."""
    linear_form(grid, method.frozen)
    return grid


def recorded_calls(method: FlowBPSparse) -> int:
    """One call at each of k steps."""
    return method.k


def surrogate(
    method: FlowBPSparse, denoisers: Denoisers, grid: Grid, rollout: Rollout, generator: torch.Generator
) -> Surrogate:
    """Draw the steps with gradient, and sum.

    Args:
        method: How many, from where, and how they count.
        denoisers: The guided network on `grid`.
        grid: The sampler's.
        rollout: The cached rollout, (B, C, ...).
        generator: Of the draws, on the CPU.

    Returns:
        The rollout's sample with their gradient, (B, C, ...).
    """
    form, first = linear_form(grid, method.frozen), grid.steps - tail_length(method.tail, grid.steps)
    # The chance counts from the rollout's first step, also in a shorter tail: so does the published code.
    active = draw_active(method.k, first, grid.steps, method.bias, generator, origin=0)
    return sparse(denoisers, form, rollout, active, factor=tail_rescaling(form, active, first, method.rescale))


def sparse(
    denoisers: Denoisers, form: LinearForm, rollout: Rollout, active: Collection[int], *, factor: float = 1.0
) -> Surrogate:
    """The sampler's own sum with some of its slopes called again at the cached states, the others constants.

    x_T = carry x_0 + sum_i w_i slope_i, hence dR/dtheta = factor sum_active w_i dR/dx_T dslope_i/dtheta; in flow
    matching w_i = s_{i+1} - s_i.

    Args:
        denoisers: The guided network.
        form: The straight path, with the slope held fixed at the other steps.
        rollout: The cached rollout, (B, C, ...).
        active: Steps with gradient.
        factor: Of their gradients, see `rescaling`.

    Returns:
        The rollout's sample with that gradient, (B, C, ...).
    """
    hat = moved(denoisers, form, rollout, active, 0, len(rollout.outs), factor)
    return Surrogate(st(hat, rollout.states[-1]), (Group(),))


def rescaling(weights: Sequence[float], active: Collection[int], share: float) -> float:
    """The factor of the active slopes' gradients, 1 + share (sum |w| / sum_active |w| - 1).

    Args:
        weights: Weights of all slopes.
        active: Indices of those with gradient.
        share: 0: the factor is 1; at 1 the active weights count as much as all.

    Returns:
        The factor; 1 where the active weights are 0.
    """
    whole, part = sum(map(abs, weights)), sum(abs(weights[i]) for i in active)
    return 1 + share * (whole / part - 1) if part else 1.0


def tail_rescaling(form: LinearForm, active: Collection[int], first: int, share: float) -> float:
    """`rescaling` over the steps that may be drawn.

    Args:
        form: The straight path.
        active: Steps with gradient.
        first: The first step that may be drawn.
        share: As in `rescaling`.

    Returns:
        The factor.
    """
    _, weights = form.weights(0, form.grid.steps)
    return rescaling(weights[first:], [i - first for i in active], share)


def moved(
    denoisers: Denoisers,
    form: LinearForm,
    rollout: Rollout,
    active: Collection[int],
    start: int,
    stop: int,
    factor: float,
) -> Tensor:
    """What the active slopes move x by from level `start` to `stop`; the rest of the sum has no gradient."""
    _, weights = form.weights(start, stop)
    total = rollout.states[stop] * 0
    for i in active:
        slope = recorded_slope(denoisers, form, rollout.states[i], i)
        total = total + weights[i - start] * scaled(slope, factor)
    return total
