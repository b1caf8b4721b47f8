"""Toy networks and grids on which the methods' gradients have closed forms, in double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from draft.diffusion.grid import FlowSchedule, Grid, Schedule, make_grid
from draft.diffusion.sampling import Output
from draft.diffusion.settings import SamplerSettings
from draft.diffusion.surrogate import Networks


def toy_grid(steps: int, prediction: Any = "epsilon", **options: Any) -> Grid:
    """The grid of Stable Diffusion's schedule, or of a flow model with shift 3."""
    settings = SamplerSettings(num_inference_steps=steps, **options)
    if prediction == "flow":
        return make_grid(FlowSchedule(shift=3.0), settings)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return make_grid(Schedule(tuple((1 - betas).cumprod(0).tolist()), prediction), settings)


def both(output: Output) -> Networks:
    """The same network where it carries gradient and where it does not."""
    return Networks(value=output, recorded=output)


class Linear(nn.Module):
    """out = W_i x at step i, or tanh of it, with weights of its own per step."""

    def __init__(self, size: int, steps: int, *, nonlinear: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weights = nn.ParameterList(
            torch.randn(size, size, generator=generator, dtype=torch.float64) / size for _ in range(steps)
        )
        self.nonlinear = nonlinear

    def forward(self, x: Tensor, i: int) -> Tensor:
        out = x @ self.weights[i].T
        return out.tanh() if self.nonlinear else out


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal noise in double precision."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
