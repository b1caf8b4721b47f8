"""The methods as values: frozen dataclasses that pydantic validates and the sampling loop reads. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Backpropagate through all sampling steps (DRaFT, arXiv 2309.17400)."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["draft"] = "draft"


@dataclass(frozen=True, kw_only=True)
class DraftK:
    """Backpropagate through the last `k` sampling steps (DRaFT-K, arXiv 2309.17400).

    Args:
        k: Number of recorded steps, 1 to the sampler's number of steps.
    """

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["draft_k"] = "draft_k"
    k: Annotated[int, Ge(1)] = 1


@dataclass(frozen=True, kw_only=True)
class DraftLV:
    """DRaFT-1 with a lower-variance gradient: the last step again from re-noised copies (DRaFT-LV, arXiv 2309.17400).

    Args:
        copies: Number n of re-noised copies beside the base sample; 0 is DRaFT-1. The n + 1 rewards are averaged
            (the paper sums them; with the mean the learning rate does not depend on n).
    """

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["draft_lv"] = "draft_lv"
    copies: Annotated[int, Ge(0)] = 2


Method = Draft | DraftK | DraftLV
