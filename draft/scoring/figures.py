"""What passes over images found, kept on the device until it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.scoring.guards import check_finite, check_start
from draft.scoring.rewards import LoadedReward


@dataclass(frozen=True)
class Figures:
    """What one pass over images found; tensors stay on the device so that nothing waits.

    Args:
        scores: Mean raw score of each term, shape (terms,).
        gradients: Norm of each term's gradient with respect to the images, not finite where a reward broke, (terms,);
            None where no gradient was asked for.
        saturated: Share of pixel values at 0 or 1, which the decoder puts there or beyond; scalar. Their gradient is
            0 unless `saturation` lets it straight through.
        loss: Mean loss of the images; scalar.
        evaluations: Images scored.
        drop: How far R falls where the images are moved against it, their mean, scalar (RSA-FT's S1); None: they stay.
    """

    scores: Tensor
    gradients: Tensor | None
    saturated: Tensor
    loss: Tensor
    evaluations: int
    drop: Tensor | None = None

    def flat(self) -> Tensor:
        """All that is always there in one tensor, in the order above, so that it crosses from the device at once."""
        gradients = torch.ones_like(self.scores) if self.gradients is None else self.gradients
        return torch.cat([self.scores, gradients, self.saturated.reshape(1), self.loss.reshape(1)])


@dataclass(frozen=True)
class MeanFigures:
    """Means of several figures, as numbers.

    Args:
        scores: Raw score by the reward's label.
        gradients: Norm of the gradient with respect to the images by the reward's label.
        others: `saturated` and `loss`, and `robust_drop` where images were moved.
    """

    scores: Mapping[str, float]
    gradients: Mapping[str, float]
    others: Mapping[str, float]


def mean_figures(rewards: Sequence[LoadedReward], figures: Sequence[Figures]) -> MeanFigures:
    """The figures' means as numbers; they cross from the device at once.

    Args:
        rewards: The rewards that the figures are of.
        figures: At least one.

    Returns:
        The means.
    """
    values = torch.stack([one.flat() for one in figures]).mean(0).tolist()
    labels, count = [reward.label for reward in rewards], len(rewards)
    others = {"saturated": values[-2], "loss": values[-1]}
    if (drop := mean_drop(figures)) is not None:
        others["robust_drop"] = float(drop)
    return MeanFigures(
        scores=dict(zip(labels, values, strict=False)),
        gradients=dict(zip(labels, values[count:], strict=False)),
        others=others,
    )


def check_figures(rewards: Sequence[LoadedReward], means: MeanFigures, step: int) -> None:
    """Refuse scores that are not finite, and before the first update gradients that are zero or not finite.

    Args:
        rewards: The rewards.
        means: Their figures.
        step: Updates made so far.

    Raises:
        StageError: There is such a figure; the error names the reward.
    """
    check_finite(means.scores, step)
    if step == 0:
        check_start({reward.label: means.gradients[reward.label] for reward in rewards if reward.term.weight})


def mean_drop(figures: Sequence[Figures]) -> Tensor | None:
    """The mean of `drop` over those in which images were moved; None: in none."""
    drops = [one.drop for one in figures if one.drop is not None]
    return torch.stack(drops).mean() if drops else None
