"""Loaded rewards: scores of images with or without their gradient, and scores of many batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from draft.diffusion.device import choose_device
from draft.rewards.inputs import guarded
from draft.rewards.reward import Score, Term
from draft.scoring.guards import check_connected, check_scores
from draft.types import Images, Prompts


@dataclass(frozen=True)
class LoadedReward:
    """A reward term ready to score.

    Args:
        term: The term.
        score: Its loaded function.
        device: Where it was loaded.
    """

    term: Term
    score: Score
    device: torch.device

    @property
    def label(self) -> str:
        """The term's label."""
        return self.term.label

    @property
    def summary(self) -> str:
        """What the reward measures: the first line of its docstring."""
        return (type(self.term.reward).__doc__ or "").strip().partition("\n")[0]

    def scores(self, images: Images, prompts: Prompts) -> Tensor:
        """Score images without gradient.

        Args:
            images: (B, 3, H, W) in [0, 1], on any device.
            prompts: B prompts.

        Returns:
            Raw scores, (B,), where the reward was loaded.

        Raises:
            StageError: The reward's result is no tensor of one score per image.
        """
        with torch.no_grad():
            raw = self.score(images.to(self.device), prompts)
        return check_scores(self.label, raw, len(images), gradient=False)

    def scores_and_gradient(self, images: Images, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Score images and differentiate; the reward's graph is freed before this returns.

        Args:
            images: (B, 3, H, W) in [0, 1], on any device.
            prompts: B prompts.

        Returns:
            Raw scores, (B,), and the gradient of their sum with respect to the images, (B, 3, H, W), both where the
            images are.

        Raises:
            StageError: The reward's result is no differentiable tensor of one score per image.
        """
        leaf = images.to(self.device).detach().requires_grad_()
        raw = check_scores(self.label, self.score(leaf, prompts), len(images), gradient=True)
        (gradient,) = torch.autograd.grad(raw.sum(), leaf, allow_unused=True)
        return raw.detach().to(images.device), check_connected(self.label, gradient).to(images)


def load_rewards(terms: Sequence[Term], device: torch.device, *, check_images: bool = False) -> list[LoadedReward]:
    """Load every reward, each on its own device if it names one.

    Args:
        terms: Rewards with labels.
        device: Where the model is.
        check_images: Whether each batch is checked before it is scored: a metric such as a file size would give a
            number for a broken image, too. A training leaves it out, since the check waits for the device.

    Returns:
        One loaded reward per term.
    """
    rewards = []
    for term in terms:
        place = choose_device(term.device) if term.device else device
        score = term.reward.load(place)
        if check_images:
            score = guarded(score, where=f"rewards.{term.label}")
        rewards.append(LoadedReward(term, score, place))
    return rewards


def score_batches(
    rewards: Sequence[LoadedReward], batches: Iterable[tuple[Prompts, Images]], prompts: Prompts
) -> dict[str, list[float]]:
    """Score images that come in batches.

    Args:
        rewards: Loaded rewards; one whose scores depend on the other images (`per_image = False`) gets all at once,
            after the last batch.
        batches: Prompts and images, in order.
        prompts: All prompts, in the same order.

    Returns:
        One score per image, by label; NaN where a reward has none.
    """
    scores: dict[str, list[float]] = {reward.label: [] for reward in rewards}
    together = [reward for reward in rewards if not reward.term.reward.per_image]
    all_images: list[Images] = []
    for batch, images in batches:
        for reward in rewards:
            if reward not in together:
                scores[reward.label] += numbers(reward.scores(images, batch))
        if together:
            all_images.append(images)
    if all_images:
        images = torch.cat(all_images)
        for reward in together:
            scores[reward.label] += numbers(reward.scores(images, prompts))
    return scores


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite values, since a reward may have no score for an image; NaN without any."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def numbers(scores: Tensor) -> list[float]:
    """Scores as plain numbers."""
    return scores.double().cpu().tolist()
