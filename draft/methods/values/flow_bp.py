"""FlowBP (arXiv 2606.11075): a few steps of a cached rollout called again, joined in three ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from draft.diffusion.settings import STEPS, Frozen
from draft.errors import Problem
from draft.marks import AtMost
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.steps import FROM_ROLLOUT, Pairs, pair_problems, too_many_active
from draft.methods.values.traits import Traits


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
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason=FROM_ROLLOUT, reuses_rollouts=True)
    module: ClassVar[str] = "draft.methods.flow_bp_sparse"
    kind: Literal["flow_bp_sparse"] = "flow_bp_sparse"
    k: Annotated[int, Ge(1), AtMost(STEPS)] = 4
    bias: Annotated[float, Ge(0)] = 1.0
    rescale: Annotated[float, Ge(0)] = 0.5
    tail: Annotated[float, Gt(0), Le(1)] = 1.0
    frozen: Frozen = "auto"

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """More steps than the sampler, or its tail, has."""
        return too_many_active(self.k, self.tail, settings)


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
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason=FROM_ROLLOUT, reuses_rollouts=True)
    module: ClassVar[str] = "draft.methods.flow_bp_bridge"
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

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """More steps than the sampler, or its tail, has; else too few to draw two from."""
        too_many = list(too_many_active(self.k, self.tail, settings))
        yield from too_many or pair_problems(self.pairs, self.tail, self.j_tail, settings)


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
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason=FROM_ROLLOUT, reuses_rollouts=True, weighs_samples=True)
    module: ClassVar[str] = "draft.methods.flow_bp_lagrange"
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

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """Too few steps to draw two from."""
        return pair_problems(self.pairs, self.tail, self.j_tail, settings)
