"""One gradient of a method from a cached rollout: its draws, then its mathematics."""

from __future__ import annotations

import torch

from draft.diffusion.linear import LinearForm, linear_form
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule
from draft.diffusion.surrogate import Networks, Rollout, Surrogate
from draft.errors import DraftError
from draft.methods.direct_align import direct_align, level_grid
from draft.methods.draws import draw_active, draw_pair, split_budget
from draft.methods.flow_bp import bridge, lagrange, rescaling, sparse
from draft.methods.leap_align import first_step, two_leaps
from draft.methods.values.leaps import (
    Cached,
    DirectAlign,
    FlowBPBridge,
    FlowBPLagrange,
    FlowBPSparse,
    LeapAlign,
    misfit,
    tail_length,
)


def call_grid(method: Cached, schedule: Schedule | FlowSchedule, grid: Grid) -> Grid:
    """The grid whose steps a method calls the network at: its own levels for Direct-Align, else the sampler's.

    Args:
        method: The method's value.
        schedule: The model's.
        grid: The sampler's.

    Returns:
        The grid.

    Raises:
        DraftError: The method does not fit the sampler's steps.
    """
    if (found := misfit(method, grid.steps)) is not None:
        raise DraftError(f"method.{found.key} {found.what}", hint=found.hint)
    if isinstance(method, DirectAlign):
        return level_grid(schedule)
    form = linear_form(grid, method.frozen)
    if isinstance(method, LeapAlign | FlowBPLagrange):
        left = grid.steps - _first(method, form)
        least = 3 if method.pairs == "dirichlet" else 2
        if left < least:
            raise DraftError(
                f"method.leap_cap must leave at least {least} of {grid.steps} steps (got {method.leap_cap:g}, "
                f"which leaves {left})",
                hint="a larger leap_cap, 0 for none, or frozen: velocity",
            )
    return grid


def recorded_calls(method: Cached) -> int:
    """The most calls that one gradient of a method records."""
    match method:
        case DirectAlign(branches=branches):
            return 2 if branches == "both" else 1
        case LeapAlign():
            return 2
        case FlowBPSparse(k=k) | FlowBPBridge(k=k):
            return k
        case FlowBPLagrange(mode=mode, order=order):
            return 2 * min({"start": 1, "midpoint": 2, "all": order}[mode], order)


def draw_surrogate(
    method: Cached, networks: Networks, grid: Grid, rollout: Rollout, generator: torch.Generator
) -> Surrogate:
    """Draw one gradient of a cached rollout.

    Args:
        method: The method's value.
        networks: The guided network on `grid`.
        grid: See `call_grid`.
        rollout: The rollout, on the sampler's grid, (B, C, ...).
        generator: Of the draws, on the CPU.

    Returns:
        Latents with the rollout's value (Direct-Align: with what it recovers of it) and the method's gradient.
    """
    if isinstance(method, DirectAlign):
        return direct_align(method, networks, grid, rollout, generator)
    form = linear_form(grid, method.frozen)
    steps, first = grid.steps, _first(method, form)
    if isinstance(method, FlowBPSparse):
        # The chance counts from the rollout's first step, also in a shorter tail: so does the published code.
        active = draw_active(method.k, first, steps, method.bias, generator, origin=0)
        return sparse(networks, form, rollout, active, factor=_factor(method, form, active, first))
    j_last = tail_length(method.j_tail, steps)
    k, j = draw_pair(first, steps, generator, pairs=method.pairs, shares=method.shares, j_last=j_last)
    match method:
        case LeapAlign(alpha=alpha, tau=tau):
            return two_leaps(networks, form, rollout, k, j, alpha=alpha, tau=tau)
        case FlowBPBridge(k=count, bias=bias, alpha=alpha):
            early, late = split_budget(count, j - first, steps - j)
            before = draw_active(early, first, j, bias, generator, origin=first)
            after = draw_active(late - 1, j + 1, steps, bias, generator, origin=j + 1)
            factor = _factor(method, form, [*before, j, *after], first)
            return bridge(networks, form, rollout, j, before, after, alpha=alpha, factor=factor)
        case FlowBPLagrange():
            return lagrange(
                networks,
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


def _first(method: LeapAlign | FlowBPSparse | FlowBPBridge | FlowBPLagrange, form: LinearForm) -> int:
    """The first step that may be drawn."""
    steps = form.grid.steps
    first = 0 if isinstance(method, LeapAlign) else steps - tail_length(method.tail, steps)
    return max(first, first_step(form, getattr(method, "leap_cap", 0.0)))


def _factor(method: FlowBPSparse | FlowBPBridge, form: LinearForm, active: list[int], first: int) -> float:
    """The rescaling over the steps that may be drawn."""
    _, weights = form.weights(0, form.grid.steps)
    return rescaling(weights[first:], [i - first for i in active], method.rescale)
