"""DRaFT (Clark et al., arXiv 2309.17400): backpropagate through the rollout's last steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from draft.diffusion.settings import STEPS
from draft.errors import Problem
from draft.marks import AtMost
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.steps import too_many_steps
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Backpropagate through all sampling steps (DRaFT, arXiv 2309.17400)."""

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    module: ClassVar[str] = "draft.methods.draft"
    kind: Literal["draft"] = "draft"

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """Nothing beyond what its traits forbid."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class DraftK:
    """Backpropagate through the last `k` sampling steps (DRaFT-K, arXiv 2309.17400).

    Args:
        k: Number of recorded steps, 1 to the sampler's number of steps.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    module: ClassVar[str] = "draft.methods.draft_k"
    kind: Literal["draft_k"] = "draft_k"
    k: Annotated[int, Ge(1), AtMost(STEPS)] = 1

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """More steps than the sampler has."""
        return too_many_steps("k", self.k, settings)


@dataclass(frozen=True, kw_only=True)
class DraftLV:
    """DRaFT-1 with a lower-variance gradient: the last step again from re-noised copies (DRaFT-LV, arXiv 2309.17400).

    Args:
        copies: Number n of re-noised copies in addition to the base sample; 0 is DRaFT-1. The n + 1 rewards are
            averaged (the paper sums them; with the mean the learning rate does not depend on n).
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    module: ClassVar[str] = "draft.methods.draft_lv"
    kind: Literal["draft_lv"] = "draft_lv"
    copies: Annotated[int, Ge(0)] = 2

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """Nothing beyond what its traits forbid."""
        return iter(())
