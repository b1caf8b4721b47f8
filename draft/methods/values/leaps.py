"""Methods that draw their gradient from a cached rollout, some of whose steps they call again and join anew."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from draft.diffusion.settings import STEPS, Frozen
from draft.marks import AtMost
from draft.methods.values.traits import Traits

Pairs = Literal["uniform", "dirichlet"]
"""How the steps k < j are drawn: two distinct ones, or by shares of the rollout before, between and after them."""

_ETA = "the cached rollout is the deterministic sampler's path, along which it leaps"


@dataclass(frozen=True, kw_only=True)
class DirectAlign:
    """Noise the finished sample with its own known noise, call the network once, take the known noise off again.

    Direct-Align; with words in front of the prompt it is SRPO (arXiv 2509.06942). SRPO scores an image relative to
    itself: (1 + bonus) r(image, "positive. prompt") - r(image, "negative. prompt"), which for a reward that is a cosine
    is the paper's own form. That needs a reward that reads the prompt: of one that does not, only the bonus is left.

    Args:
        positive: Words, one of them drawn per gradient; theirs: Natural-lighting, Detail, Detailed, Real.
        negative: Words for what is scored against; theirs: Concept art, Painting, Anime, Flat, Oil. With both empty,
            the method is plain Direct-Align.
        branches: `denoise`: from a level to a cleaner one; `inversion`: to a noisier one, where the rewards'
            signs are turned and the words swap their parts; or `both`, as SRPO does.
        levels: Where the levels lie, as shares of the training times from noise, 0, to image, 1.
        distance: How far the two levels are apart, as a share of that window.
        recovery: `move`: sg(y) - weight d e with what the network predicts at the other level, as in the published
            code; `delta`: the paper's equation 5. Same sample for a perfect network, different weight of its error.
        positive_bonus: k_p at the clean end and at the noisy end of the window.
        negative_bonus: k_n, in the inversion branch.
        discount: Without words, what a sample counts at the clean end of the window; it is 1 at the noisy end and
            linear between. The paper has such a discount and gives no form, so this one is ours.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        eta="zero", eta_reason="its sample must belong to the noise it starts from", reuses_rollouts=True
    )
    kind: Literal["direct_align"] = "direct_align"
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    branches: Literal["denoise", "inversion", "both"] = "denoise"
    levels: tuple[Annotated[float, Gt(0), Lt(1)], Annotated[float, Gt(0), Lt(1)]] = (0.1, 0.5)
    distance: Annotated[float, Gt(0), Le(1)] = 0.1
    recovery: Literal["move", "delta"] = "move"
    positive_bonus: tuple[float, float] = (0.1, 0.25)
    negative_bonus: tuple[float, float] = (0.3, 0.01)
    discount: Annotated[float, Ge(0), Le(1)] = 0.2


@dataclass(frozen=True, kw_only=True)
class LeapAlign:
    """Two leaps through the rollout, from step k to step j and from there to the end (LeapAlign, arXiv 2604.15311).

    Args:
        alpha: What is left of the gradient that goes from the second leap through the network into the first.
        tau: A sample weighs 1 / (max(d_j, tau) + max(d_0, tau)), d being the leaps' mean absolute miss in latents.
        pairs: How k and j are drawn.
        shares: (after j, between, before k): concentrations of `dirichlet`, as in FlowBP's code.
        j_tail: Share of the steps, counted from the end, that j lies in.
        leap_cap: With the slope e held fixed, leaps start only where sigma / alpha is at most this, since
            their length in it is 14.6 for Stable Diffusion's first step; 0: anywhere. Ours; the source has flow models.
        frozen: Which slope a leap follows.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason=_ETA, reuses_rollouts=True, weighs_samples=True)
    kind: Literal["leap_align"] = "leap_align"
    alpha: Annotated[float, Ge(0), Le(1)] = 0.3
    tau: Annotated[float, Gt(0)] = 0.1
    pairs: Pairs = "uniform"
    shares: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (2.5, 6.0, 2.0)
    j_tail: Annotated[float, Gt(0), Le(1)] = 1.0
    leap_cap: Annotated[float, Ge(0)] = 3.0
    frozen: Frozen = "auto"


@dataclass(frozen=True, kw_only=True)
class FlowBPSparse:
    """Call k steps of the rollout again and sum their slopes; the other steps are constants (FlowBP-Sparse).

    arXiv 2606.11075; defaults are those of its code for Stable Diffusion 3.5.

    Args:
        k: Number of steps with gradient.
        bias: Step i is drawn with a probability proportional to (i + 1)^bias: above 0, late ones more often.
        rescale: Share of what the other steps' weights lack that the drawn ones make up for; at 1 their weights add up
            to those of all steps.
        tail: Share of the steps, counted from the end, that are drawn from.
        frozen: Which slope the other steps hold fixed; the weights of the steps depend on it.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason=_ETA, reuses_rollouts=True)
    kind: Literal["flow_bp_sparse"] = "flow_bp_sparse"
    k: Annotated[int, Ge(1), AtMost(STEPS)] = 4
    bias: Annotated[float, Ge(0)] = 1.0
    rescale: Annotated[float, Ge(0)] = 0.5
    tail: Annotated[float, Gt(0), Le(1)] = 1.0
    frozen: Frozen = "auto"


@dataclass(frozen=True, kw_only=True)
class FlowBPBridge:
    """As `flow_bp_sparse` on both sides of a step j, through whose network call the sides are joined (FlowBP-Bridge).

    arXiv 2606.11075; defaults are those of its code for Stable Diffusion 3.5.

    Args:
        k: Number of steps with gradient, shared out by the length of the sides; j is one of them.
        bias: Late bias within each side, by the offset in it.
        rescale: As in `flow_bp_sparse`, over both sides.
        alpha: What is left of the gradient through the network at j.
        tail: Share of the steps, counted from the end, that are drawn from.
        pairs: How j is drawn: as the second of a pair.
        shares: (after j, between, before k): concentrations of `dirichlet`.
        j_tail: Share of the steps, counted from the end, that j lies in.
        frozen: Which slope the other steps hold fixed.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason=_ETA, reuses_rollouts=True)
    kind: Literal["flow_bp_bridge"] = "flow_bp_bridge"
    k: Annotated[int, Ge(2), AtMost(STEPS)] = 5
    bias: Annotated[float, Ge(0)] = 4.0
    rescale: Annotated[float, Ge(0)] = 0.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.5
    tail: Annotated[float, Gt(0), Le(1)] = 1.0
    pairs: Pairs = "uniform"
    shares: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (2.5, 6.0, 2.0)
    j_tail: Annotated[float, Gt(0), Le(1)] = 1.0
    frozen: Frozen = "auto"


@dataclass(frozen=True, kw_only=True)
class FlowBPLagrange:
    """`leap_align` with leaps that follow the cached slopes: their Lagrange interpolant, integrated (FlowBP-Lagrange).

    arXiv 2606.11075; defaults are those of its code for Stable Diffusion 3.5, whose j is at most 10 of 25 steps from
    the end.

    Args:
        order: Supports of each leap, evenly spaced, the first at its start.
        mode: Supports with gradient: the `start`, the first two (`midpoint`), or `all`.
        gamma: What is left of the gradient of those that are not the start.
        alpha: What is left of the gradient through the network at j.
        tau: As in `leap_align`.
        rescale: As in `flow_bp_sparse`, over each leap's supports.
        anchor: Between the straight leap, 0, and the interpolant's, 1, from k to j.
        tail: Share of the steps, counted from the end, that k and j are drawn from.
        pairs: How k and j are drawn.
        shares: (after j, between, before k): concentrations of `dirichlet`.
        j_tail: Share of the steps, counted from the end, that j lies in.
        leap_cap: As in `leap_align`; ours.
        frozen: Which slope is interpolated.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason=_ETA, reuses_rollouts=True, weighs_samples=True)
    kind: Literal["flow_bp_lagrange"] = "flow_bp_lagrange"
    order: Annotated[int, Ge(1), Le(8)] = 3
    mode: Literal["start", "midpoint", "all"] = "midpoint"
    gamma: Annotated[float, Ge(0), Le(1)] = 0.25
    alpha: Annotated[float, Ge(0), Le(1)] = 0.1
    tau: Annotated[float, Gt(0)] = 0.2
    rescale: Annotated[float, Ge(0)] = 0.0
    anchor: Annotated[float, Ge(0), Le(1)] = 1.0
    tail: Annotated[float, Gt(0), Le(1)] = 1.0
    pairs: Pairs = "dirichlet"
    shares: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (2.5, 6.0, 2.0)
    j_tail: Annotated[float, Gt(0), Le(1)] = 0.4
    leap_cap: Annotated[float, Ge(0)] = 3.0
    frozen: Frozen = "auto"


Cached = DirectAlign | LeapAlign | FlowBPSparse | FlowBPBridge | FlowBPLagrange
"""The methods of this file."""


@dataclass(frozen=True)
class Misfit:
    """An option that does not go with the number of steps or with another option.

    Args:
        key: The option.
        what: What is wrong, beginning with the option.
        hint: What to do.
    """

    key: str
    what: str
    hint: str = ""


def tail_length(tail: float, steps: int) -> int:
    """How many of the last steps a share means: ceil(tail T)."""
    return math.ceil(tail * steps - 1e-9)  # 0.28 * 25 is 7.000000000000001


def misfit(method: Cached, steps: int) -> Misfit | None:
    """What a method asks for that its rollouts do not have.

    Args:
        method: The method's value.
        steps: Number T of sampling steps.

    Returns:
        The first misfit; None: there is none.
    """
    if isinstance(method, DirectAlign):
        return _unpaired(method)
    length = steps if isinstance(method, LeapAlign) else tail_length(method.tail, steps)
    share = "the sampling steps" if length == steps else f"the {length} steps of method.tail"
    if isinstance(method, FlowBPSparse | FlowBPBridge) and method.k > length:
        return Misfit("k", f"must be at most {length}, {share} (got {method.k})")
    if isinstance(method, FlowBPSparse):
        return None
    least = 3 if method.pairs == "dirichlet" else 2
    if length < least:
        return Misfit("pairs", f"{method.pairs!r} needs at least {least} steps to draw from (got {length})")
    if tail_length(method.j_tail, steps) < least - 1:
        what = f"must leave at least {least - 1} of {steps} steps for {method.pairs!r} pairs (got {method.j_tail:g})"
        return Misfit("j_tail", what, f"at least {(least - 1) / steps:.2g}")
    return None


def _unpaired(method: DirectAlign) -> Misfit | None:
    if method.levels[0] >= method.levels[1]:
        low, high = method.levels
        return Misfit("levels", f"must rise, noisier level first (got [{low:g}, {high:g}])")
    if bool(method.positive) != bool(method.negative):
        empty = "negative" if method.positive else "positive"
        return Misfit(empty, "must have words where the other side has (got none)", "or leave both out")
    return None
