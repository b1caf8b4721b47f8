"""A method's mathematics: what its module defines, one of three things, and how it is found.

- `plan`: the method backpropagates through steps of the rollout itself, see `PlanModule`;
- `surrogate`: it calls steps of a cached rollout again and joins them anew, see `SurrogateModule`;
- `Rule`: it makes its updates by a rule of its own, a class of (method, run), see `draft.methods.run.Rule`.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import torch

from draft.diffusion.plan import Plan
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule
from draft.diffusion.surrogate import Denoisers, Rollout, Surrogate
from draft.methods.values.protocol import MethodValue


class PlanModule(Protocol):
    """The module of a method that backpropagates through steps of the rollout itself."""

    def plan(self, method: Any, steps: int, generator: torch.Generator) -> Plan:
        """Say where the gradient flows in one rollout.

        Args:
            method: The method's value.
            steps: Number T of sampling steps.
            generator: Of whatever is random in it, on the CPU.

        Returns:
            The plan.
        """
        ...


class SurrogateModule(Protocol):
    """The module of a method that calls steps of a cached rollout again and joins them anew."""

    def call_grid(self, method: Any, schedule: Schedule | FlowSchedule, grid: Grid) -> Grid:
        """The grid whose steps the method calls the network at.

        Args:
            method: The method's value.
            schedule: The model's.
            grid: The sampler's.

        Returns:
            The sampler's, or one of its own.

        Raises:
            DraftError: The method cannot work on the sampler's.
        """
        ...

    def recorded_calls(self, method: Any) -> int:
        """The most calls of the network that one gradient of the method records."""
        ...

    def surrogate(
        self, method: Any, denoisers: Denoisers, grid: Grid, rollout: Rollout, generator: torch.Generator
    ) -> Surrogate:
        """Draw one gradient of a cached rollout.

        Args:
            method: The method's value.
            denoisers: The guided network on `grid`.
            grid: See `call_grid`.
            rollout: The rollout, on the sampler's grid, (B, C, ...).
            generator: Of the draws, on the CPU.

        Returns:
            Latents with the rollout's value, or with what the method recovers of it, and the method's gradient.
        """
        ...


def mathematics(method: MethodValue) -> Any:
    """The module of a method: a `PlanModule`, a `SurrogateModule`, or one with a class `Rule` of its own.

    Args:
        method: The method's value.

    Returns:
        The module, imported.
    """
    return importlib.import_module(method.module)


def draw_plan(method: MethodValue, steps: int, generator: torch.Generator) -> Plan:
    """The plan of a method for one rollout.

    Args:
        method: The value of a method that has plans.
        steps: Number T of sampling steps.
        generator: Of the draws, on the CPU.

    Returns:
        The plan.
    """
    module: PlanModule = mathematics(method)
    return module.plan(method, steps, generator)
