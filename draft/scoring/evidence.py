"""Which images a reward broke on: kept as latents, which take little, and drawn again only when something broke."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.types import Images, Latents, Prompts

MOST = 8
"""Images that are drawn at most."""
_NAMED = 3


@dataclass(frozen=True)
class Evidence:
    """A micro-batch that was scored; everything stays on its device.

    Args:
        decode: Latents to images.
        latents: (b, C, ...), without graph.
        prompts: b prompts.
        scores: Raw score by term and image, (terms, b).
        lengths: Norm of each term's gradient with respect to each image, (terms, b), 0 where there is none; None
            where no gradient was asked for.
    """

    decode: Callable[[Latents], Images]
    latents: Latents
    prompts: Prompts
    scores: Tensor
    lengths: Tensor | None


@dataclass(frozen=True)
class Broken:
    """The images for which something is not finite.

    Args:
        prompts: Their prompts, each once.
        count: How many images there are.
        others: Whether there are also images for which it is finite.
        images: At most `MOST` of them, (n, 3, H, W), on the CPU.
        labels: The prompt of each of these.
    """

    prompts: tuple[str, ...]
    count: int
    others: bool
    images: Images
    labels: tuple[str, ...]

    @property
    def finite(self) -> bool:
        """Whether the images are, so that what was made of them is to blame."""
        return bool(self.images.isfinite().all())

    def named(self) -> str:
        """The prompts in words: ``" for 'a cat', 'a dog' and 3 more prompts"``."""
        words = [repr(prompt) for prompt in self.prompts[:_NAMED]]
        if (rest := len(self.prompts) - _NAMED) > 0:
            words.append(f"{rest} more prompt{'s' if rest > 1 else ''}")
        return f" for {' and '.join(filter(None, (', '.join(words[:-1]), words[-1])))}"


def broken_score(evidence: Sequence[Evidence], term: int) -> Broken | None:
    """The images for which a term's score is not finite.

    Args:
        evidence: What was scored.
        term: The term's number.

    Returns:
        Them; None where there are none.
    """
    return _broken(evidence, [each.scores[term] for each in evidence])


def broken_gradient(evidence: Sequence[Evidence], term: int) -> Broken | None:
    """The images with respect to which a term's gradient is not finite.

    Args:
        evidence: What was scored.
        term: The term's number.

    Returns:
        Them; None where there are none.
    """
    kept = [each for each in evidence if each.lengths is not None]
    return _broken(kept, [each.lengths[term] for each in kept if each.lengths is not None])


def draw_again(evidence: Sequence[Evidence], chosen: Sequence[tuple[int, int]]) -> Images:
    """Decode some of the latents once more.

    Args:
        evidence: What was scored.
        chosen: The number of a micro-batch, and of an image in it.

    Returns:
        Their images, float32, on the CPU.
    """
    with torch.no_grad():
        drawn = [evidence[part].decode(evidence[part].latents[row : row + 1]) for part, row in chosen]
    return torch.cat(drawn).float().cpu()


def _broken(evidence: Sequence[Evidence], values: Sequence[Tensor]) -> Broken | None:
    rows = [
        (part, row) for part, each in enumerate(values) for row, fine in enumerate(each.isfinite().tolist()) if not fine
    ]
    if not rows:
        return None
    prompts = [evidence[part].prompts[row] for part, row in rows]
    return Broken(
        prompts=tuple(dict.fromkeys(prompts)),
        count=len(rows),
        others=len(rows) < sum(len(each) for each in values),
        images=draw_again(evidence, rows[:MOST]),
        labels=tuple(prompts[:MOST]),
    )
