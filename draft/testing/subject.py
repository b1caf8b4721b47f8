"""The reward under test, and how a check says what it found. Imports torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from draft.rewards.reward import Reward, Score
from draft.rewards.surroundings import surroundings
from draft.types import Images, Prompts, Scores


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
        changes: What loading and scoring changed in the process, by which of them did; it was put back.
    """

    reward: Reward
    prompts: Prompts
    size: tuple[int, int]
    device: str
    changes: dict[str, set[str]] = field(default_factory=dict, compare=False)

    @cached_property
    def score(self) -> Score:
        """The loaded reward."""
        return self.load()

    def load(self, device: torch.device | None = None) -> Score:
        """Load the reward.

        Args:
            device: Where; None: on the subject's device.

        Returns:
            Its scoring function. One check's changes of what the process shares are put back before the next one, but
            for those of random generators, so that a reward that draws is seen to.
        """
        place = torch.device(self.device) if device is None else device
        with self._watching("loading"):
            score = self.reward.load(place)

        def watched(images: Images, prompts: Sequence[str]) -> Scores:
            with self._watching("scoring"):
                return score(images, prompts)

        return watched

    @contextmanager
    def _watching(self, doing: str) -> Iterator[None]:
        before = surroundings()
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            changed = before.restored(generators=False)
            self.changes.setdefault(doing, set()).update(changed)

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
        if not torch.equal(left.isfinite(), right.isfinite()):
            return False
        # What is no number on both sides is alike; the check `finite` reports it.
        left, right = left.double().nan_to_num(0, 0, 0), right.double().nan_to_num(0, 0, 0)
        scale = max(left.abs().max().item(), right.abs().max().item(), 1e-6)
        return bool((left - right).abs().max().item() <= relative * scale)


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
