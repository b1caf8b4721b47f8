"""FlowBP: a few steps of a cached rollout called again, in three ways of joining them (arXiv 2606.11075)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from draft.diffusion.linear import LinearForm
from draft.diffusion.straight_through import scaled, st
from draft.diffusion.surrogate import Group, Networks, Rollout, Surrogate
from draft.methods.leap_align import leap, recorded_slope, two_leaps

Mode = Literal["start", "midpoint", "all"]


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


def sparse(
    networks: Networks, form: LinearForm, rollout: Rollout, active: Collection[int], *, factor: float = 1.0
) -> Surrogate:
    """The sampler's own sum with some of its slopes called again at the cached states, the others constants.

    x_T = carry x_0 + sum_i w_i slope_i, hence dR/dtheta = factor sum_active w_i dR/dx_T dslope_i/dtheta; in flow
    matching w_i = s_{i+1} - s_i.

    Args:
        networks: The guided network.
        form: The straight path, with the slope held fixed at the other steps.
        rollout: The cached rollout, (B, C, ...).
        active: Steps with gradient.
        factor: Of their gradients, see `rescaling`.

    Returns:
        The rollout's sample with that gradient, (B, C, ...).
    """
    hat = _moved(networks, form, rollout, active, 0, len(rollout.outs), factor)
    return Surrogate(st(hat, rollout.states[-1]), (Group(),))


def bridge(
    networks: Networks,
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
        networks: The guided network.
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
    x_j = st(_moved(networks, form, rollout, before, 0, j, factor), rollout.states[j])
    carry, weights = form.weights(j, steps)
    joined = scaled(recorded_slope(networks, form, scaled(x_j, alpha), j), factor)
    hat = carry * x_j + weights[0] * joined + _moved(networks, form, rollout, after, j, steps, factor)
    return Surrogate(st(hat, rollout.states[-1]), (Group(),))


def lagrange(
    networks: Networks,
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
        networks: The guided network.
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
                hat = hat + share * scaled(recorded_slope(networks, form, state, i), factor * gamma)
            else:
                hat = hat + share * form.slope(state, rollout.outs[i], i)
        if anchor == 1 or stop == len(rollout.outs):
            return hat
        straight = leap(form, x, slope, start, stop)
        return straight + anchor * (hat - straight)

    return two_leaps(networks, form, rollout, k, j, alpha=alpha, tau=tau, connect=connect)


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


def _moved(
    networks: Networks,
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
        slope = recorded_slope(networks, form, rollout.states[i], i)
        total = total + weights[i - start] * scaled(slope, factor)
    return total
