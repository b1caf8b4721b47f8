"""The learning rate as a function of the update, so that there is no state to save."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_factor(
    update: int, *, schedule: Literal["constant", "linear", "cosine"], warmup_steps: int, max_steps: int
) -> float:
    """The share of the peak learning rate that an update uses.

    Args:
        update: The update's number, 0 to max_steps - 1.
        schedule: Shape after the warm-up; `linear` and `cosine` fall towards 0 at max_steps.
        warmup_steps: Updates of the linear rise; update k of them uses (k + 1) / warmup_steps.
        max_steps: Number of updates.

    Returns:
        A number in (0, 1].

    Example:
        >>> learning_rate_factor(0, schedule="constant", warmup_steps=4, max_steps=10)
        0.25
    """
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    share = (update - warmup_steps) / max(max_steps - warmup_steps, 1)
    if schedule == "linear":
        return 1 - share
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1.0
