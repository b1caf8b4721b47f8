"""ReFL (arXiv 2304.05977): one random late step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from draft.diffusion.settings import STEPS
from draft.errors import Problem
from draft.marks import ShareOf
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.steps import too_many_steps
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class ReFL:
    """Stop at a random one of the last steps and score its one-step prediction (ReFL, arXiv 2304.05977).

    The published code has no guidance anywhere, eta = 1, and the loss `{kind: hinge, margin: 2}`; those are settings.

    Args:
        window: The step is uniform among the last `window` ones; the published code takes 10 of 40.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    module: ClassVar[str] = "draft.methods.refl"
    kind: Literal["refl"] = "refl"
    window: Annotated[int, Ge(1), ShareOf(STEPS, least=1)] = 10

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """More steps than the sampler has."""
        return too_many_steps("window", self.window, settings)
