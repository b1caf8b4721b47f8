"""AlignProp (arXiv 2310.03739): the gradient through the last K sampling steps, K drawn for each rollout."""

from __future__ import annotations

import torch

from draft.diffusion.plan import Plan, last_steps
from draft.methods.random_steps import uniform
from draft.methods.values import AlignProp


def plan(method: AlignProp, steps: int, generator: torch.Generator) -> Plan:
    """Draw K, or draw for each step whether it is recorded.

    Args:
        method: What is drawn, and how.
        steps: Number T of sampling steps.
        generator: Of the draws, on the CPU.

    Returns:
        The plan.
    """
    match method.truncation:
        case "fixed":
            return last_steps(method.k, steps)
        case "random":
            return last_steps(uniform(1, steps, generator), steps)
        case "per_step":
            recorded = (False,) * steps
            while not any(recorded):  # ours: drawn again where no step is recorded, so nothing would learn
                recorded = tuple(i >= uniform(0, steps, generator) for i in range(steps))
            return Plan(recorded=recorded, cut=(False,) * steps)
        case "gaussian":
            if steps == 1:
                return last_steps(1, steps)
            while True:
                left_out = int(torch.randn((), generator=generator) * method.std * steps + method.mean * steps)
                if 1 <= left_out < steps:
                    return last_steps(steps - left_out, steps)
