"""FlowBP-Lagrange (arXiv 2606.11075): two leaps along the Lagrange interpolant of a cached rollout's slopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from draft.diffusion.linear import LinearForm, linear_form
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule
from draft.diffusion.straight_through import scaled
from draft.diffusion.surrogate import Denoisers, Rollout, Surrogate
from draft.methods.flow_bp_sparse import rescaling
from draft.methods.leap_align import check_starts, first_step, leap, recorded_slope, two_leaps
from draft.methods.random_steps import draw_pair
from draft.methods.values import FlowBPLagrange
from draft.methods.values.steps import tail_length

Mode = Literal["start", "midpoint", "all"]


def call_grid(method: FlowBPLagrange, schedule: Schedule | FlowSchedule, grid: Grid) -> Grid:
    """The sampler's grid, if leaps may start from enough of its steps."""
    form, first = linear_form(grid, method.frozen), grid.steps - tail_length(method.tail, grid.steps)
    check_starts(form, first, leap_cap=method.leap_cap, pairs=method.pairs)
    return grid


def recorded_calls(method: FlowBPLagrange) -> int:
    """One call at each support with gradient of two leaps, where the leaps have that many steps."""
    return 2 * min({"start": 1, "midpoint": 2, "all": method.order}[method.mode], method.order)


def surrogate(
    method: FlowBPLagrange, denoisers: Denoisers, grid: Grid, rollout: Rollout, generator: torch.Generator
) -> Surrogate:
    """Draw k < j, and leap from k to j and on to the end.

    Args:
        method: How they are drawn, and what the leaps are like.
        denoisers: The guided network on `grid`.
        grid: The sampler's.
        rollout: The cached rollout, (B, C, ...).
        generator: Of the draws, on the CPU.

    Returns:
        The rollout's sample with the leaps' gradient, (B, C, ...).
    """
    form, steps = linear_form(grid, method.frozen), grid.steps
    first = max(steps - tail_length(method.tail, steps), first_step(form, method.leap_cap))
    j_last = tail_length(method.j_tail, steps)
    k, j = draw_pair(first, steps, generator, pairs=method.pairs, shares=method.shares, j_last=j_last)
    return lagrange(
        denoisers,
        form,
        rollout,
        k,
        j,
        order=method.order,
        mode=method.mode,
        alpha=method.alpha,
        tau=method.tau,
        gamma=method.gamma,
        rescale=method.rescale,
        anchor=method.anchor,
    )


def lagrange(
    denoisers: Denoisers,
    form: LinearForm,
    rollout: Rollout,
    k: int,
    j: int,
    *,
    order: int,
    mode: Mode,
    alpha: float,
    tau: float,
    gamma: float = 1.0,
    rescale: float = 0.0,
    anchor: float = 1.0,
) -> Surrogate:
    """Two leaps as in LeapAlign, each along the integral of the Lagrange interpolant of some of its slopes.

    Args:
        denoisers: The guided network.
        form: The straight path, with the slope that is interpolated.
        rollout: The cached rollout, (B, C, ...).
        k: First step, 0..T-2.
        j: Second step, k+1..T-1.
        order: Supports of each leap; fewer where it has fewer steps.
        mode: Supports with gradient: the first, the first two, or all.
        alpha: What is left of the gradient through the call at j, 0..1.
        tau: Smallest difference that counts in the samples' weights, above 0.
        gamma: What is left of the gradient of supports other than the first, 0..1.
        rescale: As `share` of `rescaling`, over each leap's supports.
        anchor: x_j = straight leap + anchor (interpolated leap - straight leap).

    Returns:
        The rollout's sample with that gradient, (B, C, ...). Order 1 is LeapAlign.
    """

    def connect(x: Tensor, slope: Tensor, start: int, stop: int) -> Tensor:
        carry, weights = form.weights(start, stop)
        chosen = supports(start, stop, order)
        c = carry * form.scale[start]
        nodes = [form.tau[i] for i in chosen]
        shares = [c * w for w in integral_weights(nodes, form.tau[start], form.tau[start] + sum(weights) / c)]
        active = {"start": 1, "midpoint": 2, "all": order}[mode]
        factor = rescaling(shares, range(min(active, len(chosen))), rescale)
        hat = carry * x + shares[0] * scaled(slope, factor)
        for place, (share, i) in enumerate(zip(shares[1:], chosen[1:], strict=True), start=1):
            state = rollout.states[i]
            if place < active:
                hat = hat + share * scaled(recorded_slope(denoisers, form, state, i), factor * gamma)
            else:
                hat = hat + share * form.slope(state, rollout.outs[i], i)
        if anchor == 1 or stop == len(rollout.outs):
            return hat
        straight = leap(form, x, slope, start, stop)
        return straight + anchor * (hat - straight)

    return two_leaps(denoisers, form, rollout, k, j, alpha=alpha, tau=tau, connect=connect)


def supports(start: int, stop: int, order: int) -> list[int]:
    """Up to `order` steps of start .. stop - 1, evenly spaced, the first and the last among them."""
    count = stop - start
    if count <= order:
        return list(range(start, stop))
    if order == 1:
        return [start]
    return [start + round(place * (count - 1) / (order - 1)) for place in range(order)]


def integral_weights(nodes: Sequence[float], start: float, stop: float) -> list[float]:
    """Weights w with sum_m w_m f(nodes_m) = the integral of f from start to stop, for polynomials f below their number.

    Args:
        nodes: Distinct times.
        start: Lower end.
        stop: Upper end, other than `start`.

    Returns:
        The integrals of the Lagrange basis polynomials; their sum is stop - start.
    """
    # In units of the interval, so that powers stay near 1.
    places = (np.asarray(nodes) - start) / (stop - start)
    powers = np.arange(len(nodes))
    return (np.linalg.solve(places[None, :] ** powers[:, None], 1 / (powers + 1)) * (stop - start)).tolist()
