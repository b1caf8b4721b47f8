"""The tuned and the base model as one network whose mixture changes from step to step."""

from __future__ import annotations

import torch
from torch import Tensor

from draft.diffusion.control.schedules import AdapterSchedule, Annealed, Combined, LastSteps
from draft.diffusion.sampling import Output


def scheduled(schedule: AdapterSchedule, steps: int, *, tuned: Output, base: Output) -> Output:
    """Mix two networks: e = (1 - w_i) e_base + w_i e_tuned (NVIDIA NeMo-Aligner, anneal_sdxl.py).

    What is mixed are guided outputs at the same latents; for v and flow prediction that is the same as mixing e. A
    network whose share is 0 is not called.

    Args:
        schedule: The tuned network's share w_i in each step.
        steps: The number T of steps.
        tuned: The network with the adapter.
        base: The network without.

    Returns:
        The mixture.

    Note:
        NeMo's sampler for Stable Diffusion decodes the tuned network's prediction of the last step; here the mixture
        goes through the sampler like any network, so the mixture is decoded.
    """

    def output(x: Tensor, i: int) -> Tensor:
        w = share(schedule, i, steps)
        if w == 0:
            return base(x, i)
        if w == 1:
            return tuned(x, i)
        # Two equal outputs give themselves to the last bit, which (1 - w) e + w e would not.
        return torch.lerp(base(x, i), tuned(x, i), w)

    return output


def share(schedule: AdapterSchedule, i: int, steps: int) -> float:
    """The tuned network's share w_i in step i.

    Annealed: w_i = (i / T)^p with 0^0 = 1, so it is 0 in the first step and ((T - 1) / T)^p in the last; with a
    threshold f, w_i = 1 where i / T >= f and 0 before.

    Args:
        schedule: The schedule.
        i: Steps already made, 0..T-1.
        steps: The number T of steps.

    Returns:
        A number in [0, 1].
    """
    match schedule:
        case LastSteps(steps=last):
            return float(i >= steps - last)
        case Combined(base_steps=m):
            return float(i >= m)
        case Annealed(threshold=f) if f is not None:
            return float(i / steps >= f)
        case Annealed(power=p) if p is not None:
            return (i / steps) ** p
    return 1.0
