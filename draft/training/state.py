"""Everything a training must remember to go on exactly where it was, besides the weights: its randomness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from draft.marks import Holds, Inert, plain
from draft.rewards.reward import Term
from draft.training.base_adapters import FRESH, Foundation
from draft.training.settings import TrainSettings
from draft.types import Prompts


class Randomness:
    """Separate generators on the CPU for the order of prompts, the noise, a sampler's fresh noise, a method's draws.

    Noise drawn on the CPU is the same on every device; separate generators keep, say, the prompts' order
    independent of the method.

    Args:
        seed: The training's seed.
        prompts: Number of prompts.
    """

    def __init__(self, seed: int, prompts: int) -> None:
        self._order, self._noise, self._fresh = (_generator(seed, name) for name in ("order", "noise", "fresh"))
        self.method = _generator(seed, "method")
        self._prompts = prompts
        self._queue: list[int] = []

    def indices(self, count: int) -> list[int]:
        """The next `count` prompts: every prompt once, in random order, then all again in another order."""
        while len(self._queue) < count:
            self._queue += torch.randperm(self._prompts, generator=self._order).tolist()
        chosen, self._queue = self._queue[:count], self._queue[count:]
        return chosen

    def noise(self, *shape: int) -> Tensor:
        """Standard normal noise for rollouts, float32 on the CPU."""
        return torch.randn(shape, generator=self._noise)

    def fresh(self, steps: int, *shape: int) -> list[Tensor]:
        """Standard normal noise for each step of a stochastic rollout, float32 on the CPU."""
        return [torch.randn(shape, generator=self._fresh) for _ in range(steps)]

    def state(self) -> dict[str, Any]:
        """The generators' states and the prompts still to come."""
        return {"queue": list(self._queue)} | {name: each.get_state() for name, each in self._generators().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self._queue = list(state["queue"])
        for name, generator in self._generators().items():
            generator.set_state(state[name])

    def _generators(self) -> dict[str, torch.Generator]:
        return {"order": self._order, "noise": self._noise, "fresh": self._fresh, "method": self.method}


def identity(
    settings: TrainSettings,
    *,
    model: str,
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    foundation: Foundation = FRESH,
) -> str:
    """A hash of everything that decides a training's result, so that no checkpoint of another one is continued.

    Settings that are marked as inert do not count, and what is marked as held counts by its content.

    Args:
        settings: The training's settings.
        model: The model's name or path.
        prompts: Its prompts with their columns.
        terms: Its rewards.
        seed: Its seed.
        foundation: The adapter files it is built on.

    Returns:
        64 hexadecimal digits.
    """
    decisive = plain(settings, lambda mark: isinstance(mark, Inert | Holds))
    rewards = [(term.label, term.reward.name, term.reward.model_dump_json(), term.weight) for term in terms]
    columns = {name: prompts.column(name) for name in prompts.columns}
    content = json.dumps(
        [decisive, model, list(prompts), columns, rewards, seed, *foundation.identity()], sort_keys=True
    )
    return hashlib.sha256(content.encode()).hexdigest()


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{name}:{seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
