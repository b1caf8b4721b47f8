"""What a loaded reward is given, looked at before it is scored: images in [0, 1] and one prompt for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draft.errors import DraftError
from draft.rewards.reward import Score
from draft.types import Images, Scores

SLACK = 1 / 512
"""How far a pixel may lie outside [0, 1]: half a level of 8 bits, more than rounding makes and less than a mistake."""


def guarded(score: Score, *, where: str) -> Score:
    """A scoring function that refuses what it could only mis-score.

    Args:
        score: A loaded reward.
        where: The reward's name, for errors.

    Returns:
        The same function with `check_inputs` before it; the gradient is untouched.
    """

    def checked(images: Images, prompts: Sequence[str]) -> Scores:
        check_inputs(images, prompts, where=where)
        return score(images, prompts)

    return checked


def check_inputs(images: Any, prompts: Any, *, where: str) -> None:
    """Check a batch: a floating-point tensor (B, 3, H, W) in [0, 1] without NaN, B at least 1, and B prompts.

    Args:
        images: What is to be scored.
        prompts: What is said of it.
        where: The reward's name, for errors.

    Raises:
        DraftError: Something else was given; what, and what to do about it.
    """
    if not callable(getattr(images, "is_floating_point", None)):
        raise DraftError(f"images must be a torch tensor (got {type(images).__name__})", where=where)
    if not images.is_floating_point():
        hint = "divide levels of 8 bits: images.float() / 255"
        raise DraftError(f"images must be floating point, 0 to 1 (got {images.dtype})", where=where, hint=hint)
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3:
        hint = "put the colours second: images.permute(0, 3, 1, 2)" if len(shape) == 4 and shape[3] == 3 else ""
        if len(shape) == 3 and shape[0] == 3:
            hint = "one image is a batch of one: images[None]"
        if len(shape) == 4 and shape[1] in (1, 4):
            hint = "repeat a grey image's channel, and leave out an alpha channel"
        raise DraftError(f"images must have the shape (B, 3, H, W) (got {shape})", where=where, hint=hint)
    if 0 in shape:
        raise DraftError(f"there must be at least one image with at least one pixel (got shape {shape})", where=where)
    low, high = (float(bound) for bound in images.detach().aminmax())
    if low != low:
        raise DraftError("images must be in [0, 1] (got NaN)", where=where)
    if low < -SLACK or high > 1 + SLACK:
        hint = (
            "divide levels of 8 bits by 255" if high > 2 else "clamp them, or if they are in [-1, 1]: images / 2 + 0.5"
        )
        raise DraftError(f"images must be in [0, 1] (got {low:.4g} to {high:.4g})", where=where, hint=hint)
    if isinstance(prompts, str):
        hint = f"a list: [{prompts[:40]!r}]"
        raise DraftError(f"prompts must be one text per image (got the text {prompts[:40]!r})", where=where, hint=hint)
    if len(prompts) != shape[0]:
        raise DraftError(f"there must be one prompt per image, {shape[0]} (got {len(prompts)})", where=where)
