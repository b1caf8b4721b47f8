"""Everything a training must remember to go on exactly where it was, besides the weights: its randomness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from draft.registry.reward import Term
from draft.training.settings import TrainSettings
from draft.types import Prompts


class Randomness:
    """Separate generators on the CPU for the order of prompts, the noise and the copies' noise.

    Noise drawn on the CPU is the same on every device; separate generators keep, say, the prompts' order
    independent of the method.

    Args:
        seed: The training's seed.
        prompts: Number of prompts.
    """

    def __init__(self, seed: int, prompts: int) -> None:
        self._order, self._noise, self._copies = (_generator(seed, name) for name in ("order", "noise", "copies"))
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

    def copy_noise(self, *shape: int) -> Tensor:
        """Standard normal noise for re-noised copies, float32 on the CPU."""
        return torch.randn(shape, generator=self._copies)

    def state(self) -> dict[str, Any]:
        """The generators' states and the prompts still to come."""
        generators = {"order": self._order, "noise": self._noise, "copies": self._copies}
        return {"queue": list(self._queue)} | {name: generator.get_state() for name, generator in generators.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self._queue = list(state["queue"])
        self._order.set_state(state["order"])
        self._noise.set_state(state["noise"])
        self._copies.set_state(state["copies"])


def identity(settings: TrainSettings, *, model: str, prompts: Prompts, terms: Sequence[Term], seed: int) -> str:
    """A hash of everything that decides a training's result, so that no checkpoint of another one is continued.

    Args:
        settings: The training's settings.
        model: The model's name or path.
        prompts: Its prompts with their columns.
        terms: Its rewards.
        seed: Its seed.

    Returns:
        64 hexadecimal digits.
    """
    decisive = {k: v for k, v in asdict(settings).items() if k not in ("checkpoint", "preview", "report_to", "device")}
    rewards = [(term.label, term.reward.name, term.reward.model_dump_json(), term.weight) for term in terms]
    columns = {name: prompts.column(name) for name in prompts.columns}
    content = json.dumps([decisive, model, list(prompts), columns, rewards, seed], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{name}:{seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
