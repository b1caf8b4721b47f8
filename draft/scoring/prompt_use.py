"""Whether a training's rewards read its prompts: cut ones are counted, and scores that ignore them are warned of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from draft.errors import DraftWarning
from draft.rewards.reading import cut_prompts
from draft.scoring.rewards import LoadedReward
from draft.types import Images, Prompts, Scores

_BATCHES = 4
"""Batches that are scored with other prompts at most."""
_ENOUGH = 2
"""Batches that must score alike with other prompts before it is said: two texts may have one score by chance."""
_SAME = 1e-6
"""Relative difference of scores that counts as none."""
_MOST = 20_000
"""Prompts that are looked at, at most."""


def warn_of_cut_prompts(rewards: Sequence[LoadedReward], prompts: Prompts) -> None:
    """Warn once of each reward that reads prompts only in part, with how many.

    Args:
        rewards: Loaded rewards.
        prompts: All prompts; of a very long list the first 20,000 are looked at.
    """
    for reward in rewards:
        cut = cut_prompts(reward.label, reward.readings, prompts[:_MOST])
        if cut:
            warnings.warn(cut, DraftWarning, stacklevel=2)


def watching_prompts(rewards: Sequence[LoadedReward], prompts: Prompts) -> list[LoadedReward]:
    """Rewards of which those that claim to use prompts are seen to do so, in their first batches.

    Each of the first batches is scored a second time, with the prompts in another order and without gradient, until
    a score differs; after that nothing is done any more. No tensor is changed, and `LoadedReward` puts the random
    generators back.

    Args:
        rewards: Loaded rewards.
        prompts: All prompts; batches whose prompts are alike take others of them.

    Returns:
        The same rewards, in order.
    """
    return [
        replace(reward, score=PromptWatch(reward, prompts[:_MOST])) if reward.term.reward.uses_prompt else reward
        for reward in rewards
    ]


@dataclass
class PromptWatch:
    """A scoring function that warns, once, where other prompts give the same scores.

    Args:
        reward: The reward.
        prompts: All prompts.
        batches: Batches that are still looked at.
        looks: Batches that scored alike with other prompts.
        seen: Their scores.
    """

    reward: LoadedReward
    prompts: Prompts
    batches: int = _BATCHES
    looks: int = 0
    seen: list[float] = field(default_factory=list)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Scores:
        """Score a batch; see `draft.Score`."""
        # A copy, since a reward may change what it is given.
        again = images.detach().clone() if self.batches else None
        scores = self.reward.score(images, prompts)
        if again is not None:
            self.batches -= 1
            self._look(again, prompts, scores)
        return scores

    def _look(self, images: Images, prompts: Sequence[str], scores: Scores) -> None:
        batch = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
        others = other_prompts(batch, self.prompts)
        if others is None or not isinstance(scores, torch.Tensor) or scores.shape != (len(batch),):
            return
        with torch.no_grad():
            second = self.reward.score(images, others)
        before, after = scores.detach().double().tolist(), second.double().tolist()
        if not all(map(math.isfinite, [*before, *after])):
            return
        if not _alike(before, after):
            self.batches = 0
            return
        self.seen += before
        self.looks += 1
        # A detector that sees nothing anywhere gives every image one score, whatever it is asked for.
        if self.looks >= _ENOUGH and not _alike(self.seen, self.seen[1:] + self.seen[:1]):
            self.batches = 0
            what = (
                f"reward {self.reward.label!r} uses prompts, but its scores do not depend on them: "
                f"{len(self.seen)} images have the same scores with other prompts"
            )
            warnings.warn(what, DraftWarning, stacklevel=2)


def other_prompts(batch: Prompts, prompts: Prompts) -> Prompts | None:
    """A batch's prompts in another order, or where all are alike one of the rest.

    Args:
        batch: B prompts.
        prompts: All prompts.

    Returns:
        B prompts, of which one at least differs from the batch's in its text and in all columns that have different
        values; None: there are none, or no column has.
    """
    varied = [name for name in prompts.columns if len(set(prompts.values(name))) > 1]
    if prompts.columns and not varied:
        return None

    def differ(i: int, others: Prompts, j: int) -> bool:
        columns = [name for name in varied if name in batch.columns and name in others.columns]
        return batch[i] != others[j] and all(batch.values(name)[i] != others.values(name)[j] for name in columns)

    size = len(batch)
    for shift in range(1, size):
        moved = batch.take([(place + shift) % size for place in range(size)])
        if any(differ(place, moved, place) for place in range(size)):
            return moved
    found = next((place for place in range(len(prompts)) if differ(0, prompts, place)), None)
    return None if found is None else prompts.take([found] * size)


def _alike(left: Sequence[float], right: Sequence[float]) -> bool:
    scale = max(map(abs, [*left, *right]), default=0.0)
    return all(abs(a - b) <= _SAME * scale for a, b in zip(left, right, strict=True))
