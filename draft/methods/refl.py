"""ReFL (arXiv 2304.05977): the one-step prediction at a random late step, where the rollout ends."""

from __future__ import annotations

import torch

from draft.diffusion.plan import Plan, at_steps
from draft.methods.random_steps import uniform
from draft.methods.values import ReFL


def plan(method: ReFL, steps: int, generator: torch.Generator) -> Plan:
    """Record one step, uniform among the last `window` of T, and end the rollout there.

    Args:
        method: The window.
        steps: Number T of sampling steps.
        generator: Of the draws, on the CPU.

    Returns:
        The plan.
    """
    stop = steps - uniform(1, method.window, generator)
    return Plan(recorded=at_steps({stop}, steps), cut=at_steps({stop} - {0}, steps), stop=stop)
