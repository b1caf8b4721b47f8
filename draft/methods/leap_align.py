"""LeapAlign (arXiv 2604.15311): the gradient of two long steps, the value of the real rollout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from draft.diffusion.linear import LinearForm, linear_form
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule
from draft.diffusion.straight_through import scaled, st
from draft.diffusion.surrogate import Denoisers, Group, Rollout, Surrogate
from draft.errors import DraftError
from draft.methods.random_steps import draw_pair
from draft.methods.values import LeapAlign
from draft.methods.values.steps import Pairs, fewest_steps, tail_length

Connect = Callable[[Tensor, Tensor, int, int], Tensor]
"""(latents at step start, slope there, start, stop) -> latents at level stop."""


def call_grid(method: LeapAlign, schedule: Schedule | FlowSchedule, grid: Grid) -> Grid:
    """The sampler's grid, if leaps may start from enough of its steps."""
    check_starts(linear_form(grid, method.frozen), 0, leap_cap=method.leap_cap, pairs=method.pairs)
    return grid


def recorded_calls(method: LeapAlign) -> int:
    """One call at each of two steps."""
    return 2


def surrogate(
    method: LeapAlign, denoisers: Denoisers, grid: Grid, rollout: Rollout, generator: torch.Generator
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
    form = linear_form(grid, method.frozen)
    first, j_last = first_step(form, method.leap_cap), tail_length(method.j_tail, grid.steps)
    k, j = draw_pair(first, grid.steps, generator, pairs=method.pairs, shares=method.shares, j_last=j_last)
    return two_leaps(denoisers, form, rollout, k, j, alpha=method.alpha, tau=method.tau)


def recorded_slope(denoisers: Denoisers, form: LinearForm, x: Tensor, i: int) -> Tensor:
    """The slope at step i from a recorded call."""
    return form.slope(x, denoisers.with_grad(x, i), i)


def leap(form: LinearForm, x: Tensor, slope: Tensor, start: int, stop: int) -> Tensor:
    """Follow one slope from level `start` to level `stop`: (c'/c) x + c' (tau' - tau) slope; with e, the DDIM jump."""
    carry, weights = form.weights(start, stop)
    return carry * x + sum(weights) * slope


def first_step(form: LinearForm, cap: float) -> int:
    """The first step that a leap may start from: with the slope e, where sigma / alpha <= cap.

    Args:
        form: The straight path.
        cap: Largest sigma / alpha; 0: none.

    Returns:
        A step, or T where there is none.
    """
    if form.frozen == "velocity" or not cap:
        return 0
    return next((i for i, tau in enumerate(form.tau) if tau <= cap), len(form.tau))


def check_starts(form: LinearForm, first: int, *, leap_cap: float, pairs: Pairs) -> None:
    """Refuse a cap that leaves too few steps to draw two from.

    Args:
        form: The straight path.
        first: The first step that may be drawn without it.
        leap_cap: See `first_step`.
        pairs: How the two are drawn.

    Raises:
        DraftError: There are too few.
    """
    steps, least = form.grid.steps, fewest_steps(pairs)
    left = steps - max(first, first_step(form, leap_cap))
    if left < least:
        raise DraftError(
            f"method.leap_cap must leave at least {least} of {steps} steps (got {leap_cap:g}, which leaves {left})",
            hint="a larger leap_cap, 0 for none, or frozen: velocity",
        )


def two_leaps(
    denoisers: Denoisers,
    form: LinearForm,
    rollout: Rollout,
    k: int,
    j: int,
    *,
    alpha: float,
    tau: float,
    connect: Connect | None = None,
) -> Surrogate:
    """Leap from x_k to x_j and from there to the end; both landings take the rollout's values (arXiv 2604.15311).

    x_j = st(leap(x_k), x_j), and the second leap starts from it in full, while its network call sees alpha x_j + (1 -
    alpha) sg(x_j). In flow matching, with J_v the network's Jacobian (equation 10):
    dx_T/dtheta = -s_j dv_j - (s_k - s_j) dv_k + alpha s_j (s_k - s_j) J_v(x_j) dv_k. A sample's weight is
    1 / (max(d_j, tau) + max(d_T, tau)), with d the mean absolute difference of a leap's landing to the rollout.

    Args:
        denoisers: The guided network.
        form: The straight path, with the slope that a leap follows.
        rollout: The cached rollout, (B, C, ...).
        k: First step, 0..T-2.
        j: Second step, k+1..T-1.
        alpha: What is left of the gradient through the second call, 0..1.
        tau: Smallest difference that counts, in latents, above 0.
        connect: How a leap goes; None: straight.

    Returns:
        The rollout's sample with the leaps' gradient, (B, C, ...).

    Note:
        The paper has flow models. With another slope held fixed the same holds for it: s is then rho = sigma / alpha,
        and what alpha scales is the slope as a function of its latents, predictions included.
    """
    steps = len(rollout.outs)
    go = connect or (lambda x, slope, start, stop: leap(form, x, slope, start, stop))
    at_j = go(rollout.states[k], recorded_slope(denoisers, form, rollout.states[k], k), k, j)
    x_j = st(at_j, rollout.states[j])
    at_end = go(x_j, recorded_slope(denoisers, form, scaled(x_j, alpha), j), j, steps)
    misses = [(hat - true).detach().abs().flatten(1).mean(1).clamp(min=tau) for hat, true in (
        (at_j, rollout.states[j]), (at_end, rollout.states[-1]))]  # fmt: skip
    return Surrogate(st(at_end, rollout.states[-1]), (Group(weights=1 / (misses[0] + misses[1])),))
