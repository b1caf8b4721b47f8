"""Methods that regress the network onto the base model's output, shifted by a gradient of the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

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
        outliers: Which terms teach nothing: those whose root exceeds a running mean of the terms' `quantile`, those
            above `clamp` lambda^2 (the paper's flow model), or none (`keep`).
        quantile: The quantile of `quantile`, of the roots of a batch's terms.
        clamp: The factor of `clamp`.
        prompt_dropout: Share of batches whose regression is on the unconditional prompt; without guidance none.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        eta="one", eta_reason="its regression has the right solution under memoryless noise only", backpropagates=False
    )
    kind: Literal["adjoint_matching"] = "adjoint_matching"
    reward_multiplier: Annotated[float, Gt(0)] = 100.0
    early: Annotated[int, Ge(0)] = 2
    late: Annotated[int, Ge(1)] = 2
    boundary: Annotated[float, Ge(0), Lt(1)] = 0.6
    outliers: Literal["quantile", "clamp", "keep"] = "quantile"
    quantile: Annotated[float, Gt(0), Le(1)] = 0.9
    clamp: Annotated[float, Gt(0)] = 1.6
    prompt_dropout: Annotated[float, Ge(0), Lt(1)] = 0.2


@dataclass(frozen=True, kw_only=True)
class VGGFlow:
    """Regress the velocity onto the base model's plus the reward's one-step gradient (VGG-Flow, arXiv 2512.05116).

    The simple version: without the network that corrects the one-step gradient. The shift per latent value is at most
    beta cap / sqrt(D) for D of them, so `beta` belongs to a size of latents. Published for flow matching; the form for
    diffusion models is ours. Defaults are those of the authors' code (github.com/lzzcd001/vggflow) for Stable Diffusion
    3, which has 20 steps, guidance 5, a learning rate of 1e-4 and weight decay 1e-4; its script for the aesthetic
    reward has beta 1e4, `linear` and a learning rate of 1e-3.

    Args:
        beta: Factor of the reward's gradient in the shift of the velocity.
        schedule: Factor by the noise level s of the step: (1 - s)^2, 1 - s or 1.
        cap: Largest norm of the reward's gradient per sample, in the first update at least.
        cap_quantile: Later caps are this quantile of the norms of the update before; null: `cap` stays.
        share: Share of steps regressed per rollout, one of each of as many chunks, beside the last step.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        eta="zero", eta_reason="it follows the deterministic sampler's flow", backpropagates=False
    )
    kind: Literal["vgg_flow"] = "vgg_flow"
    beta: Annotated[float, Ge(0)] = 1e3
    schedule: Literal["quadratic", "linear", "constant"] = "quadratic"
    cap: Annotated[float, Gt(0)] = 1.0
    cap_quantile: Annotated[float, Gt(0), Le(1)] | None = 0.8
    share: Annotated[float, Gt(0), Le(1)] = 0.25
