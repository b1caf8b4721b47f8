"""AlignProp (arXiv 2310.03739): DRaFT-K with a random K."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from draft.diffusion.settings import STEPS
from draft.errors import Problem
from draft.marks import AtMost
from draft.methods.values.protocol import TrainingSettings
from draft.methods.values.steps import too_many_steps
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class AlignProp:
    """DRaFT-K with a random K for each rollout (AlignProp, arXiv 2310.03739).

    Args:
        truncation: `random`: K uniform in 1..T; `gaussian`: T - K = int(N(mean T, std T)), redrawn until 1 <= K < T, as
            in the published code; `fixed`: always `k`; `per_step`: each step is recorded independently with probability
            (i + 1) / (T + 1), again if none would be, and the others enter as constants, as in its first version.
        k: Recorded steps of `fixed`.
        mean: Mean share of steps that `gaussian` drops; the published code's is 42 of 50.
        std: Its standard deviation; the published code's is 5 of 50.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    module: ClassVar[str] = "draft.methods.alignprop"
    kind: Literal["alignprop"] = "alignprop"
    truncation: Literal["random", "fixed", "gaussian", "per_step"] = "random"
    k: Annotated[int, Ge(1), AtMost(STEPS)] = 1
    mean: Annotated[float, Gt(0), Le(1)] = 0.84
    std: Annotated[float, Gt(0), Le(1)] = 0.1

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """More steps than the sampler has, where they are fixed."""
        return too_many_steps("k", self.k if self.truncation == "fixed" else 1, settings)
