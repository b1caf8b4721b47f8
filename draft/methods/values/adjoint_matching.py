"""Adjoint Matching (arXiv 2409.08861): regression onto the optimal control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from draft.errors import Problem
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class AdjointMatching:
    """Regress each step onto the optimal control, found by an adjoint of the base model (Adjoint Matching, 2409.08861).

    It aims at the base model's distribution times exp(reward_multiplier R). Defaults are those of the authors' code for
    Stable Diffusion 1.5 (github.com/microsoft/soc-fine-tuning-sd), which trains with a learning rate of 3e-6, AdamW
    (0.9, 0.95), no clipping, 125 images per update and 20 warm-up updates. Once trained, any sampler will do.

    Args:
        reward_multiplier: Factor lambda of R in the target; the published figures are 100 and less for one reward on
            Stable Diffusion 1.5, 1000 to 12500 in the paper's flow model.
        early: Steps regressed per rollout among the first `boundary` T; all of them where there are fewer.
        late: Steps regressed per rollout among the others that add noise; all of them where there are fewer.
        boundary: The share of steps that counts as early. The paper's flow model: 0.75, 40 steps, all 9 late ones that
            add noise, 7 or 8 early ones.
        outliers: Which terms are dropped: those whose root exceeds a running mean of the terms' `quantile`, those above
            `clamp` lambda^2 (the paper's flow model), or none (`keep`).
        quantile: The quantile of `quantile`, of the roots of a batch's terms.
        clamp: The factor of `clamp`.
        prompt_dropout: Share of batches whose regression is on the unconditional prompt; without guidance none.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        eta="one", eta_reason="its regression has the right solution under memoryless noise only", backpropagates=False
    )
    module: ClassVar[str] = "draft.methods.adjoint_matching"
    kind: Literal["adjoint_matching"] = "adjoint_matching"
    reward_multiplier: Annotated[float, Gt(0)] = 100.0
    early: Annotated[int, Ge(0)] = 2
    late: Annotated[int, Ge(1)] = 2
    boundary: Annotated[float, Ge(0), Lt(1)] = 0.6
    outliers: Literal["quantile", "clamp", "keep"] = "quantile"
    quantile: Annotated[float, Gt(0), Le(1)] = 0.9
    clamp: Annotated[float, Gt(0)] = 1.6
    prompt_dropout: Annotated[float, Ge(0), Lt(1)] = 0.2

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """Nothing beyond what its traits forbid."""
        return iter(())
