"""DRTune (arXiv 2405.00760): spaced steps without Jacobians."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from draft.diffusion.settings import STEPS, Frozen
from draft.errors import Problem
from draft.marks import AtMost
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.steps import too_many_steps
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class DRTune:
    """Record spaced steps, early ones too, without the Jacobian chain through the network (DRTune, arXiv 2405.00760).

    The network's input is detached at every step, so the gradient goes along the sampler's straight path alone. The
    rollout stops early and its one-step prediction is scored. What the sources disagree on is a setting.

    Args:
        k: Recorded steps.
        stop: The last step made is uniform among the last `stop` T ones; 0 makes all steps.
        spacing: Whether the recorded steps are spread over those that are taken (`prefix`), or over all steps, of which
            those after the stop are dropped (`whole`).
        frozen: What the other steps hold fixed; the weights of the steps depend on it.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason="it follows the deterministic sampler's straight path")
    module: ClassVar[str] = "draft.methods.drtune"
    kind: Literal["drtune"] = "drtune"
    k: Annotated[int, Ge(1), AtMost(STEPS)] = 3
    stop: Annotated[float, Ge(0), Le(1)] = 0.4
    spacing: Literal["prefix", "whole"] = "prefix"
    frozen: Frozen = "auto"

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """More steps than the sampler has."""
        return too_many_steps("k", self.k, settings)
