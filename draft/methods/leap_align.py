"""LeapAlign: the gradient of two long steps, the value of the real rollout."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from draft.diffusion.linear import LinearForm
from draft.diffusion.straight_through import scaled, st
from draft.diffusion.surrogate import Group, Networks, Rollout, Surrogate

Connect = Callable[[Tensor, Tensor, int, int], Tensor]
"""(latents at step start, slope there, start, stop) -> latents at level stop."""


def recorded_slope(networks: Networks, form: LinearForm, x: Tensor, i: int) -> Tensor:
    """The slope at step i from a recorded call."""
    return form.slope(x, networks.recorded(x, i), i)


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


def two_leaps(
    networks: Networks,
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
        networks: The guided network.
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
    at_j = go(rollout.states[k], recorded_slope(networks, form, rollout.states[k], k), k, j)
    x_j = st(at_j, rollout.states[j])
    at_end = go(x_j, recorded_slope(networks, form, scaled(x_j, alpha), j), j, steps)
    misses = [(hat - true).detach().abs().flatten(1).mean(1).clamp(min=tau) for hat, true in (
        (at_j, rollout.states[j]), (at_end, rollout.states[-1]))]  # fmt: skip
    return Surrogate(st(at_end, rollout.states[-1]), (Group(weights=1 / (misses[0] + misses[1])),))
