"""Methods that backpropagate through steps of the rollout itself: which steps, and where the chain ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from draft.diffusion.settings import STEPS, Frozen
from draft.marks import AtMost
from draft.methods.values.traits import Traits


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Backpropagate through all sampling steps (DRaFT, arXiv 2309.17400)."""

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    kind: Literal["draft"] = "draft"


@dataclass(frozen=True, kw_only=True)
class DraftK:
    """Backpropagate through the last `k` sampling steps (DRaFT-K, arXiv 2309.17400).

    Args:
        k: Number of recorded steps, 1 to the sampler's number of steps.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    kind: Literal["draft_k"] = "draft_k"
    k: Annotated[int, Ge(1), AtMost(STEPS)] = 1


@dataclass(frozen=True, kw_only=True)
class DraftLV:
    """DRaFT-1 with a lower-variance gradient: the last step again from re-noised copies (DRaFT-LV, arXiv 2309.17400).

    Args:
        copies: Number n of re-noised copies beside the base sample; 0 is DRaFT-1. The n + 1 rewards are averaged
            (the paper sums them; with the mean the learning rate does not depend on n).
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    kind: Literal["draft_lv"] = "draft_lv"
    copies: Annotated[int, Ge(0)] = 2


@dataclass(frozen=True, kw_only=True)
class ReFL:
    """Stop at a random one of the last steps and score its one-step prediction (ReFL, arXiv 2304.05977).

    The published code has no guidance anywhere, eta = 1, and the loss `{kind: hinge, margin: 2}`; those are settings.

    Args:
        window: The step is uniform among the last `window` ones; the published code takes 10 of 40.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    kind: Literal["refl"] = "refl"
    window: Annotated[int, Ge(1), AtMost(STEPS)] = 10


@dataclass(frozen=True, kw_only=True)
class AlignProp:
    """DRaFT-K with K drawn anew for each rollout (AlignProp, arXiv 2310.03739).

    Args:
        truncation: `random`: K uniform in 1..T; `gaussian`: T - K = int(N(mean T, std T)), redrawn until 1 <= K < T, as
            in the published code; `fixed`: always `k`; `per_step`: each step is recorded by itself with probability
            (i + 1) / (T + 1) and the others enter as constants, as in its first version.
        k: Recorded steps of `fixed`.
        mean: Mean share of steps that `gaussian` leaves out; the published code's is 42 of 50.
        std: Its standard deviation; the published code's is 5 of 50.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits()
    kind: Literal["alignprop"] = "alignprop"
    truncation: Literal["random", "fixed", "gaussian", "per_step"] = "random"
    k: Annotated[int, Ge(1), AtMost(STEPS)] = 1
    mean: Annotated[float, Gt(0), Le(1)] = 0.84
    std: Annotated[float, Gt(0), Le(1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class DRTune:
    """Record spaced steps, early ones too, without the Jacobian chain through the network (DRTune, arXiv 2405.00760).

    The network's input is detached at every step, so the gradient goes along the sampler's straight path alone. The
    rollout stops early and its one-step prediction is scored. What the sources disagree on is a setting.

    Args:
        k: Recorded steps.
        stop: The last step made is uniform among the last `stop` T ones; 0 makes all steps.
        spacing: Whether the recorded steps are spread over those that are made (`prefix`), or over all steps, of which
            those after the stop fall away (`whole`).
        frozen: What the other steps hold fixed; the weights of the steps depend on it.
    """

    __pydantic_config__ = {"extra": "forbid"}
    traits: ClassVar[Traits] = Traits(eta="zero", eta_reason="it follows the deterministic sampler's straight path")
    kind: Literal["drtune"] = "drtune"
    k: Annotated[int, Ge(1), AtMost(STEPS)] = 3
    stop: Annotated[float, Ge(0), Le(1)] = 0.4
    spacing: Literal["prefix", "whole"] = "prefix"
    frozen: Frozen = "auto"
