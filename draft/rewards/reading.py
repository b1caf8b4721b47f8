"""How much of a text a loaded reward reads, so that prompts that are cut can be counted before they are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from draft.rewards.reward import Score
from draft.types import Images, Scores


@dataclass(frozen=True)
class Reading:
    """How a loaded reward reads one kind of text, e.g. its questions.

    Args:
        limit: The most tokens it reads of one.
        lengths: The tokens of each prompt's text, those included that start and end it; of several texts the longest.
    """

    limit: int
    lengths: Callable[[Sequence[str]], Sequence[int]]

    def of(self, texts: Callable[[Sequence[str]], Sequence[str]]) -> Reading:
        """The same of prompts, where `lengths` is of the texts that are made of them.

        Args:
            texts: The text of each prompt.

        Returns:
            How the prompts are read.
        """
        return Reading(self.limit, lambda prompts: self.lengths(texts(prompts)))


@dataclass(frozen=True)
class ReadingScore:
    """A scoring function that says how much of its texts it reads.

    Args:
        score: The function.
        readings: How it reads each kind of text.
    """

    score: Score
    readings: tuple[Reading, ...]

    def __call__(self, images: Images, prompts: Sequence[str]) -> Scores:
        """Score a batch; see `draft.Score`."""
        return self.score(images, prompts)


def readings_of(score: Any) -> tuple[Reading, ...]:
    """How a loaded reward reads its texts; nothing where it does not say so."""
    return getattr(score, "readings", ())


def cut_prompts(label: str, readings: Sequence[Reading], prompts: Sequence[str]) -> str:
    """Say how many prompts a reward reads only in part.

    Args:
        label: The reward's label.
        readings: How it reads them.
        prompts: The prompts, with the columns that its options name.

    Returns:
        A sentence; empty where it reads all of them whole.
    """
    for reading in readings:
        longer = [length for length in reading.lengths(prompts) if length > reading.limit]
        if longer:
            are = "is" if len(longer) == 1 else "are"
            return (
                f"reward {label!r} reads {reading.limit} tokens of a text, and {len(longer)} of {len(prompts)} prompts "
                f"{are} longer (up to {max(longer)}): the rest is cut off"
            )
    return ""
