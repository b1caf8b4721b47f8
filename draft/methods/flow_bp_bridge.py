"""FlowBP-Bridge (arXiv 2606.11075): steps on both sides of one of them, whose network call joins the sides."""

from __future__ import annotations

from collections.abc import Collection

import torch

from draft.diffusion.linear import LinearForm, linear_form
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule
from draft.diffusion.straight_through import scaled, st
from draft.diffusion.surrogate import Denoisers, Group, Rollout, Surrogate
from draft.methods.flow_bp_sparse import moved, tail_rescaling
from draft.methods.leap_align import recorded_slope
from draft.methods.random_steps import draw_active, draw_pair, split_budget
from draft.methods.values import FlowBPBridge
from draft.methods.values.steps import tail_length


def call_grid(method: FlowBPBridge, schedule: Schedule | FlowSchedule, grid: Grid) -> Grid:
    """The sampler's grid, if it has a straight path with the slope that is held fixed."""
    linear_form(grid, method.frozen)
    return grid


def recorded_calls(method: FlowBPBridge) -> int:
    """One call at each of k steps."""
    return method.k


def surrogate(
    method: FlowBPBridge, denoisers: Denoisers, grid: Grid, rollout: Rollout, generator: torch.Generator
) -> Surrogate:
    """Draw the step j that joins the sides and the others on both sides of it, and sum.

    Args:
        method: How many, from where, and how they count.
        denoisers: The guided network on `grid`.
        grid: The sampler's.
        rollout: The cached rollout, (B, C, ...).
        generator: Of the draws, on the CPU.

    Returns:
        The rollout's sample with their gradient, (B, C, ...).
    """
    form, steps = linear_form(grid, method.frozen), grid.steps
    first, j_last = steps - tail_length(method.tail, steps), tail_length(method.j_tail, steps)
    _, j = draw_pair(first, steps, generator, pairs=method.pairs, shares=method.shares, j_last=j_last)
    early, late = split_budget(method.k, j - first, steps - j)
    before = draw_active(early, first, j, method.bias, generator, origin=first)
    after = draw_active(late - 1, j + 1, steps, method.bias, generator, origin=j + 1)
    factor = tail_rescaling(form, [*before, j, *after], first, method.rescale)
    return bridge(denoisers, form, rollout, j, before, after, alpha=method.alpha, factor=factor)


def bridge(
    denoisers: Denoisers,
    form: LinearForm,
    rollout: Rollout,
    j: int,
    before: Collection[int],
    after: Collection[int],
    *,
    alpha: float,
    factor: float = 1.0,
) -> Surrogate:
    """As `sparse` on both sides of step j, whose network call sees the first side's gradient, scaled by alpha.

    With q = dR/dx_T, the slopes before j meet (carry q + alpha w_j J_j^T q) instead of carry q alone, J_j being the
    slope's Jacobian at x_j.

    Args:
        denoisers: The guided network.
        form: The straight path.
        rollout: The cached rollout, (B, C, ...).
        j: The step that joins the sides, 1..T-1.
        before: Steps with gradient before j.
        after: Steps with gradient after j, without j, which always has.
        alpha: What is left of the gradient through the call at j, 0..1.
        factor: Of all their gradients, see `rescaling`.

    Returns:
        The rollout's sample with that gradient, (B, C, ...).
    """
    steps = len(rollout.outs)
    x_j = st(moved(denoisers, form, rollout, before, 0, j, factor), rollout.states[j])
    carry, weights = form.weights(j, steps)
    joined = scaled(recorded_slope(denoisers, form, scaled(x_j, alpha), j), factor)
    hat = carry * x_j + weights[0] * joined + moved(denoisers, form, rollout, after, j, steps, factor)
    return Surrogate(st(hat, rollout.states[-1]), (Group(),))
