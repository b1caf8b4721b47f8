"""Loaded rewards: scores of images with or without their gradient, and scores of many batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from draft.diffusion.device import choose_device
from draft.rewards.calls import Called, calling, load_reward, version_of, warn_if_changed
from draft.rewards.inputs import guarded
from draft.rewards.parts import called
from draft.rewards.reading import Reading, readings_of
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
        readings: How it reads its texts, where it says so.
        warned: What the user has been warned of.
    """

    term: Term
    score: Score
    device: torch.device
    readings: tuple[Reading, ...] = ()
    warned: set[str] = field(default_factory=set, compare=False)

    @property
    def label(self) -> str:
        """The term's label."""
        return self.term.label

    @property
    def summary(self) -> str:
        """What the reward measures: the first line of its docstring."""
        return (type(self.term.reward).__doc__ or "").strip().partition("\n")[0]

    @property
    def called(self) -> Called:
        """Who is named where a call of it goes wrong."""
        return called(self.label, self.term.reward)

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
        # A copy of its own: what a reward changes in place is no other term's, and not the decoder's.
        given = images.detach().to(self.device, copy=True)
        before = version_of(given)
        with torch.no_grad(), calling(self.called, "scoring", device=self.device):
            raw = self.score(given, prompts)
        warn_if_changed(given, before, self.called)
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
        leaf = images.detach().to(self.device, copy=True).requires_grad_()
        before = version_of(leaf)
        with calling(self.called, "scoring", device=self.device):
            raw = check_scores(self.label, self.score(leaf, prompts), len(images), gradient=True)
            (gradient,) = torch.autograd.grad(raw.sum(), leaf, allow_unused=True)
        warn_if_changed(leaf, before, self.called)
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
        score = load_reward(term.reward, place, called(term.label, term.reward))
        readings = readings_of(score)
        if check_images:
            score = guarded(score, where=f"rewards.{term.label}")
        rewards.append(LoadedReward(term, score, place, readings=readings))
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
