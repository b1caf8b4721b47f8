"""A deterministic policy gradient by a learned critic (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from draft.errors import Problem
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class DPG:
    """Follow the gradient of a learned critic instead of the reward's: a negative result worth reproducing (ours).

    The DRaFT paper (arXiv 2309.17400) found this kind of method worse than DRaFT but does not publish it; all choices
    here are ours. The critic guesses the final reward from any latent on the way; each step then climbs it. Regression
    makes the critic's values right where samples are and says nothing of its gradient.

    Args:
        share: Part of the sampling steps that learn in an update, drawn anew each time; at least one.
        critic_width: Channels of the critic.
        critic_learning_rate: Adam's step size for the critic.
        critic_steps: Steps of the critic's optimiser per update.
        critic_batch: Latents per step of the critic.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(
        reward_gradient=False,
        backpropagates=False,
        eta="positive",
        eta_reason="fresh noise is what explores, and without it the critic sees one path only",
    )
    module: ClassVar[str] = "draft.methods.dpg"
    kind: Literal["dpg"] = "dpg"
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    critic_width: Annotated[int, Ge(1)] = 32
    critic_learning_rate: Annotated[float, Gt(0)] = 1e-3
    critic_steps: Annotated[int, Ge(1)] = 10
    critic_batch: Annotated[int, Ge(1)] = 64

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """Nothing beyond what its traits forbid."""
        return iter(())
