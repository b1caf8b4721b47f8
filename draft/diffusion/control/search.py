"""The best of several samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Best:
    """Each image's best candidate.

    Args:
        latents: Final latents, (B, C, ...).
        rewards: R of each, (B,).
        chosen: The candidate's number, (B,).
    """

    latents: Tensor
    rewards: Tensor
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
        found = reward(latents)
        new = Best(latents, found, torch.full_like(found, number))
        if best is None:
            best = new
            continue
        wins = found > best.rewards
        like = wins.reshape(-1, *[1] * (latents.dim() - 1))
        best = Best(
            torch.where(like, latents, best.latents),
            torch.where(wins, found, best.rewards),
            torch.where(wins, new.chosen, best.chosen),
        )
    if best is None:
        raise ValueError("there is no candidate")
    return best


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
