"""LeapAlign (arXiv 2604.15311): two long steps through a cached rollout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from draft.diffusion.settings import Frozen
from draft.errors import Problem
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.steps import FROM_ROLLOUT, Pairs, pair_problems
from draft.methods.values.traits import Traits


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
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason=FROM_ROLLOUT, reuses_rollouts=True, weighs_samples=True)
    module: ClassVar[str] = "draft.methods.leap_align"
    kind: Literal["leap_align"] = "leap_align"
    alpha: Annotated[float, Ge(0), Le(1)] = 0.3
    tau: Annotated[float, Gt(0)] = 0.1
    pairs: Pairs = "uniform"
    shares: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (2.5, 6.0, 2.0)
    j_tail: Annotated[float, Gt(0), Le(1)] = 1.0
    leap_cap: Annotated[float, Ge(0)] = 3.0
    frozen: Frozen = "auto"

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """Too few steps to draw two from."""
        return pair_problems(self.pairs, 1.0, self.j_tail, settings)
