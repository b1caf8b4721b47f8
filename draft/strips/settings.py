"""Settings of a strip as a plain frozen dataclass; pipelines validate it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, MinLen

from draft.evaluation.settings import DrawSettings
from draft.marks import First

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True, kw_only=True)
class StripSettings(DrawSettings):
    """How an adapter is drawn over its scale, or two over both.

    Args:
        scales: Scales of the first adapter, a column for each; 0 is the base model.
        scales_b: Scales of the second adapter, a line for each, where there are two.
        seeds: Seeds of the noise: a row of images, or a grid, for each of them and each prompt.
    """

    scales: Annotated[tuple[Annotated[float, Ge(-100), Le(100)], ...], MinLen(1)] = SCALES
    scales_b: Annotated[tuple[Annotated[float, Ge(-100), Le(100)], ...], MinLen(1)] = SCALES
    seeds: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1), First(2)] = (0, 1, 2)
