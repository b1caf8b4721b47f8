"""The same small search for every method's learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from draft.comparison.record import TrainingRecord
from draft.comparison.samples import REWARD

AXIS = "seconds"
"""The budget that all trainings of a search share."""


def find_rate(
    rates: Sequence[float], try_rate: Callable[[float], TrainingRecord]
) -> tuple[float | None, dict[float, TrainingRecord]]:
    """Train once with each learning rate and take the one whose samples score best.

    Args:
        rates: The learning rates; a single one is taken untried.
        try_rate: Trains with one.

    Returns:
        The best, None where every training failed; and what was tried.
    """
    if len(rates) == 1:
        return rates[0], {}
    tried = {rate: try_rate(rate) for rate in dict.fromkeys(rates)}
    rewards = {rate: figure(run, AXIS, REWARD) for rate, run in tried.items()}
    usable = [rate for rate in rewards if math.isfinite(rewards[rate])]
    return max(usable, key=lambda rate: rewards[rate], default=None), tried


def figure(run: TrainingRecord, axis: str, label: str) -> float:
    """What a training's samples scored when it had spent one budget.

    Args:
        run: The training.
        axis: The budget.
        label: The score.

    Returns:
        The score; NaN where the training failed or never came so far.
    """
    if run.failure or axis not in run.spent:
        return float("nan")
    return run.spent[axis].figures[label]
