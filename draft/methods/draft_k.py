"""DRaFT-K (arXiv 2309.17400): the gradient through the last K sampling steps."""

from __future__ import annotations

import torch

from draft.diffusion.plan import Plan, last_steps
from draft.methods.values import DraftK


def plan(method: DraftK, steps: int, generator: torch.Generator) -> Plan:
    """Record the last K of T steps; nothing is random."""
    return last_steps(method.k, steps)
