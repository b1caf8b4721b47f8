"""What passes over images found, kept on the device until it is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from draft.scoring.evidence import Evidence, broken_gradient, broken_score
from draft.scoring.guards import broken_score_error, check_start, gradient_error, warn_unscored
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
        evidence: What was scored, to find the images on which a reward broke.
        drop: How far R falls where the images are moved against it, their mean, scalar (RSA-FT's S1); None: they stay.
    """

    scores: Tensor
    gradients: Tensor | None
    saturated: Tensor
    loss: Tensor
    evaluations: int
    evidence: tuple[Evidence, ...] = ()
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


def check_figures(
    rewards: Sequence[LoadedReward], means: MeanFigures, step: int, figures: Sequence[Figures] = ()
) -> None:
    """Refuse scores that are not finite, and before the first update gradients that are zero or not finite.

    A score of a reward of weight 0, which is only measured, is a warning, once.

    Args:
        rewards: The rewards.
        means: Their figures.
        step: Updates made so far.
        figures: What `means` are of, to name the images; empty: none are named.

    Raises:
        StageError: There is such a figure; the error names the reward, the prompts, and has their images.
    """
    evidence = [each for one in figures for each in one.evidence]
    for number, reward in enumerate(rewards):
        if not math.isfinite(value := means.scores[reward.label]):
            if reward.term.weight:
                raise broken_score_error(reward.label, value, step, broken_score(evidence, number))
            if reward.label not in reward.warned:
                reward.warned.add(reward.label)
                warn_unscored(reward.label, value, step, broken_score(evidence, number))
    if step == 0:
        for number, reward in enumerate(rewards):
            if reward.term.weight:
                check_start(reward.label, means.gradients[reward.label], partial(broken_gradient, evidence, number))


def check_gradient(
    norm: float, rewards: Sequence[LoadedReward], means: MeanFigures, step: int, figures: Sequence[Figures]
) -> None:
    """Stop a training whose LoRA gradient is not finite, naming the rewards whose own gradients are not.

    Args:
        norm: The gradient's norm before clipping.
        rewards: The rewards.
        means: Their figures.
        step: Updates made so far.
        figures: What `means` are of.

    Raises:
        DivergedError: The norm is not finite.
    """
    if math.isfinite(norm):
        return
    numbers = [n for n, reward in enumerate(rewards) if not math.isfinite(means.gradients[reward.label])]
    evidence = [each for one in figures for each in one.evidence]
    found = next(filter(None, (broken_gradient(evidence, number) for number in numbers)), None)
    raise gradient_error(norm, [rewards[number].label for number in numbers], step, found)


def mean_drop(figures: Sequence[Figures]) -> Tensor | None:
    """The mean of `drop` over those in which images were moved; None: in none."""
    drops = [one.drop for one in figures if one.drop is not None]
    return torch.stack(drops).mean() if drops else None
