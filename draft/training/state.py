"""Everything a training must remember to go on exactly where it was, besides the weights: its randomness."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
        self._queue = torch.empty(0, dtype=torch.int32)

    def indices(self, count: int) -> list[int]:
        """Draw the next `count` prompts: every prompt once, in random order, then all again in another order."""
        while len(self._queue) < count:
            order = torch.randperm(self._prompts, generator=self._order)
            self._queue = torch.cat([self._queue, order.to(torch.int32)])
        chosen, self._queue = self._queue[:count].tolist(), self._queue[count:]
        return chosen

    def upcoming(self, count: int) -> list[int]:
        """The next `count` prompts as `indices` will draw them; nothing is drawn."""
        order, queue = torch.Generator("cpu"), self._queue
        order.set_state(self._order.get_state())
        while len(queue) < count:
            queue = torch.cat([queue, torch.randperm(self._prompts, generator=order).to(torch.int32)])
        return queue[:count].tolist()

    def noise(self, *shape: int) -> Tensor:
        """Standard normal noise for rollouts, float32 on the CPU."""
        return torch.randn(shape, generator=self._noise)

    def fresh(self, steps: int, *shape: int) -> list[Tensor]:
        """Standard normal noise for each step of a stochastic rollout, float32 on the CPU."""
        return [torch.randn(shape, generator=self._fresh) for _ in range(steps)]

    def state(self) -> dict[str, Any]:
        """The generators' states and the prompts still to come."""
        generators = {name: generator.get_state() for name, generator in self._generators().items()}
        return {"queue": self._queue.clone()} | generators

    def restore(self, state: Mapping[str, Any], *, order: bool = True) -> None:
        """Go back to a state.

        Args:
            state: As `state()` gave it.
            order: Whether the order of the prompts too; not where the prompts are others.
        """
        if order:
            self._queue = state["queue"].clone()
        for name, generator in self._generators().items():
            if order or name != "order":
                generator.set_state(state[name])

    def _generators(self) -> dict[str, torch.Generator]:
        return {"order": self._order, "noise": self._noise, "fresh": self._fresh, "method": self.method}


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{name}:{seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
