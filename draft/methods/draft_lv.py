"""DRaFT-LV (arXiv 2309.17400): the last sampling step, and again from n re-noised copies of its result."""

from __future__ import annotations

import torch

from draft.diffusion.plan import Plan, last_steps
from draft.methods.values import DraftLV


def plan(method: DraftLV, steps: int, generator: torch.Generator) -> Plan:
    """Record the last of T steps, and n copies of it; their noise is the rollout's matter."""
    return last_steps(1, steps, copies=method.copies)
