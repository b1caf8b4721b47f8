"""DRaFT (arXiv 2309.17400): the gradient through all sampling steps."""

from __future__ import annotations

import torch

from draft.diffusion.plan import Plan, last_steps
from draft.methods.values import Draft


def plan(method: Draft, steps: int, generator: torch.Generator) -> Plan:
    """Record all T steps; nothing is random."""
    return last_steps(steps, steps)
