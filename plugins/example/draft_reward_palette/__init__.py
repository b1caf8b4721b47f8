"""The reward `palette`: pictures that a few inks can print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import draft
from draft.errors import OptionError
from pydantic import field_validator

if TYPE_CHECKING:
    import torch


class Palette(draft.Reward):
    """How well a few inks print an image: 0 if each spot has the colour of one, -100 if all are as far as can be.

    r(x) = -100 mean_s min_k |x_s - c_k|^2 / 3, with the inks' colours c_k and the mean colours x_s of the spots,
    squares of `spot` pixels each way.
    """

    name = "palette"
    api_version = 1

    inks: str = draft.Field(
        "#000000 #ffffff",
        description="colours such as '#1d3557 #f1faee', or a column of the prompt file as '{inks}'",
    )
    spot: int = draft.Field(
        1, ge=1, le=16, description="side of a spot in pixels: 1 asks for flat areas, more lets patterns mix inks"
    )

    @field_validator("inks")
    @classmethod
    def _readable(cls, inks: str) -> str:
        if not re.fullmatch(r"\{\w+\}", inks):
            colours(inks)
        return inks

    def load(self, device: torch.device) -> draft.Score:
        """There is nothing to load: a reward with a network would bring it to `device` here."""
        import torch
        from torch.nn.functional import avg_pool2d

        def score(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            side = min(self.spot, *images.shape[-2:])
            spots = avg_pool2d(images, side, ceil_mode=True)
            scores = []
            # One by one: each image may have inks of its own, and another number of them.
            for x, inks in zip(spots, draft.per_prompt(self.inks, prompts), strict=True):
                c = torch.tensor(colours(inks), dtype=x.dtype, device=x.device)
                distances = (x - c[:, :, None, None]).square().mean(dim=1)
                scores.append(-100 * distances.amin(dim=0).mean())
            return torch.stack(scores)

        return score


def colours(inks: str) -> list[list[float]]:
    """Inks as text, "#ff0000 #000000", to their colours, [[1, 0, 0], [0, 0, 0]]."""
    words = inks.split()
    if not words or not all(re.fullmatch("#[0-9a-fA-F]{6}", word) for word in words):
        raise OptionError(f"must be colours such as '#1d3557 #f1faee' (got {inks!r})", where="palette")
    return [[level / 255 for level in bytes.fromhex(word[1:])] for word in words]


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this package."""
    return [Palette]
