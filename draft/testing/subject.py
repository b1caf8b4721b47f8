"""The reward under test, and how a check says what it found. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from draft.rewards.reward import Reward, Score
from draft.types import Prompts


class CheckFailed(Exception):
    """A check found that the reward breaks its contract."""


class CheckSkipped(Exception):
    """A check does not apply to this reward."""


@dataclass(frozen=True)
class Subject:
    """The reward under test and what it is tested with.

    Args:
        reward: The reward with its parameters.
        prompts: B prompts, with the columns that the reward's options name.
        size: Height and width of the images.
        device: Where to load it.
    """

    reward: Reward
    prompts: Prompts
    size: tuple[int, int]
    device: str

    @cached_property
    def score(self) -> Score:
        """The loaded reward."""
        return self.reward.load(torch.device(self.device))

    def images(
        self, seed: int = 0, *, size: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Smooth random images inside (0.15, 0.85), away from where clamps cut gradients: float (B, 3, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        height, width = size or self.size
        coarse = torch.rand(len(self.prompts), 3, 8, 8, generator=generator, dtype=torch.float64)
        smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
        grain = torch.rand(len(self.prompts), 3, height, width, generator=generator, dtype=torch.float64)
        return (0.15 + 0.6 * smooth + 0.1 * grain).to(device=self.device, dtype=dtype)

    def close(self, left: Tensor, right: Tensor, relative: float) -> bool:
        """Whether scores agree up to `relative` of their size."""
        scale = max(left.abs().max().item(), right.abs().max().item(), 1e-6)
        return bool((left.double() - right.double()).abs().max().item() <= relative * scale)


def require(true: bool, otherwise: str) -> None:
    """Fail a check unless something is true.

    Args:
        true: What has to be.
        otherwise: Why the check fails.

    Raises:
        CheckFailed: It is not.
    """
    if not true:
        raise CheckFailed(otherwise)
