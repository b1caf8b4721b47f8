"""DRTune (arXiv 2405.00760): spaced sampling steps before a random stop, without the network's Jacobians."""

from __future__ import annotations

import torch

from draft.diffusion.plan import Plan, at_steps
from draft.methods.random_steps import uniform
from draft.methods.values import DRTune


def plan(method: DRTune, steps: int, generator: torch.Generator) -> Plan:
    """Draw where the rollout stops, then the offset of K evenly spaced steps.

    Args:
        method: K, the share of stops, and what the steps are spread over.
        steps: Number T of sampling steps.
        generator: Of the draws, on the CPU.

    Returns:
        The plan.
    """
    window = round(method.stop * steps)
    stop = steps - uniform(1, window, generator) if window else steps - 1
    span = stop + 1 if method.spacing == "prefix" else steps
    k = min(method.k, span)
    gap = span // k
    reached: set[int] = set()
    while not reached:  # ours: drawn again where no step before the stop is recorded, so nothing would learn
        offset = uniform(0, span - 1 - (k - 1) * gap, generator)
        # Counted from the clean end, as the paper counts.
        reached = {i for i in (span - 1 - offset - j * gap for j in range(k)) if i <= stop}
    return Plan(
        recorded=at_steps(reached, steps),
        cut=(False,) * steps,
        stop=stop,
        jacobians=False,
        frozen=method.frozen,
    )
