"""The best of several samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Samples with their rewards.

    Args:
        latents: Final latents, (B, C, ...).
        rewards: R of each, (B,).
    """

    latents: Tensor
    rewards: Tensor


S = TypeVar("S", bound=Samples)


@dataclass(frozen=True)
class Best(Samples):
    """Each image's best candidate.

    Args:
        chosen: The candidate's number, (B,).
    """

    chosen: Tensor


def best_of(candidates: Iterable[Tensor], reward: Callable[[Tensor], Tensor]) -> Best:
    """Keep, for each image, the candidate of the highest reward; of equals the first.

    Args:
        candidates: One after another, B final latents each, (B, C, ...); made when they are needed.
        reward: R at final latents, (B,).

    Returns:
        The best ones.

    Raises:
        ValueError: There is no candidate.
    """
    best: Best | None = None
    for number, latents in enumerate(candidates):
        rewards = reward(latents)
        best = keep_better(best, Best(latents, rewards, torch.full_like(rewards, number)))
    if best is None:
        raise ValueError("there is no candidate")
    return best


def keep_better(best: S | None, new: S) -> S:
    """Keep each image's sample of the higher reward; of equals the old one.

    Args:
        best: Tensors with an entry per image, (B, ...); None: nothing yet.
        new: Another one of its class.

    Returns:
        Each image's entries of one of the two.
    """
    if best is None:
        return new
    wins = new.rewards > best.rewards
    entries = {}
    for field in fields(best):
        old, other = getattr(best, field.name), getattr(new, field.name)
        entries[field.name] = torch.where(wins.reshape(-1, *[1] * (old.dim() - 1)), other, old)
    return type(best)(**entries)


def modified(prompt: str, modifier: str) -> str:
    """A prompt with a modifier: put into its `{prompt}`, or followed by it after a comma.

    Args:
        prompt: Any text.
        modifier: Any text.

    Returns:
        The modified prompt.

    Example:
        >>> modified("a cat", "oil painting"), modified("a cat", "a photo of {prompt}")
        ('a cat, oil painting', 'a photo of a cat')
    """
    return modifier.replace("{prompt}", prompt) if "{prompt}" in modifier else f"{prompt}, {modifier}"
