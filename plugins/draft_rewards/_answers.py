"""What a loaded model that answers questions about images is, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

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
