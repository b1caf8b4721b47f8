"""VGG-Flow (arXiv 2512.05116): regression of the velocity, without the correction network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from draft.errors import Problem
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.traits import Traits


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
        share: Share of steps regressed per rollout, one from each of as many chunks, in addition to the last step.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        eta="zero", eta_reason="it follows the deterministic sampler's flow", backpropagates=False
    )
    module: ClassVar[str] = "draft.methods.vgg_flow"
    kind: Literal["vgg_flow"] = "vgg_flow"
    beta: Annotated[float, Ge(0)] = 1e3
    schedule: Literal["quadratic", "linear", "constant"] = "quadratic"
    cap: Annotated[float, Gt(0)] = 1.0
    cap_quantile: Annotated[float, Gt(0), Le(1)] | None = 0.8
    share: Annotated[float, Gt(0), Le(1)] = 0.25

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """Nothing beyond what its traits forbid."""
        return iter(())
