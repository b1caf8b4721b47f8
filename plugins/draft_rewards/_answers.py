"""What a loaded model that answers questions about images is, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from draft.rewards.reading import Reading

if TYPE_CHECKING:
    from torch import Tensor

    from draft.types import Images


class Answers(Protocol):
    """How likely a loaded model is to give the wanted answers."""

    def __call__(self, images: Images, questions: Sequence[str], wanted: Sequence[str]) -> Tensor:
        """Sum of log p(token | image, question, the answer's tokens before it) over an answer and its end.

        Args:
            images: Float (B, 3, H, W) in [0, 1].
            questions: B questions.
            wanted: B answers.

        Returns:
            Float32 (B,), at most 0; the gradient reaches the pixels.
        """
        ...


@dataclass(frozen=True)
class ReadingAnswers:
    """A loaded model of a family that cuts its texts.

    Args:
        answers: The model.
        questions: How it reads questions.
        wanted: How it reads answers.
    """

    answers: Answers
    questions: Reading
    wanted: Reading

    def __call__(self, images: Images, questions: Sequence[str], wanted: Sequence[str]) -> Tensor:
        """See `Answers`."""
        return self.answers(images, questions, wanted)
