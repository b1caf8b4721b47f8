"""Toy networks and grids on which the methods' gradients have closed forms, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from draft.diffusion.plan import Plan
from draft.diffusion.sampling import Output, move, predict, renoise, step
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule, make_grid
from draft.diffusion.settings import SamplerSettings
from draft.diffusion.surrogate import Denoisers, roll_out


def toy_grid(steps: int, prediction: Any = "epsilon", **options: Any) -> Grid:
    """The grid of Stable Diffusion's schedule, or of a flow model with shift 3."""
    settings = SamplerSettings(num_inference_steps=steps, **options)
    if prediction == "flow":
        return make_grid(FlowSchedule(shift=3.0), settings)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return make_grid(Schedule(tuple((1 - betas).cumprod(0).tolist()), prediction), settings)


def both(output: Output) -> Denoisers:
    """The same network where it carries gradient and where it does not."""
    return Denoisers(no_grad=output, with_grad=output)


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


def held(plan: Plan, grid: Grid, output: Output, noise: Tensor, copy_noise: Tensor) -> Callable[[], Tensor]:
    """A plan's latents as a function of the network's weights, with what the plan stops held at its present value."""
    kept, last = roll_out(output, grid, noise), grid.steps - 1

    def latents() -> Tensor:
        x = x0 = noise
        for i in range(grid.steps if plan.stop is None else plan.stop + 1):
            x = kept.states[i] if plan.cut[i] else x
            seen = x if plan.jacobians else kept.states[i]
            out = output(seen, i) if plan.recorded[i] else kept.outs[i]
            x0, e = predict(grid, seen, out, i)
            if plan.frozen == "velocity":  # e - x0 from the kept latents, and x itself from the chain
                u, s = e - x0, grid.sigma[i]
                x0 = (x - s * u) / (grid.alpha[i] + s)
                e = x0 + u
            elif not plan.jacobians:
                x0 = (x - grid.sigma[i] * e) / grid.alpha[i]
            x = move(grid, x0, e, i)
        parts = [x if plan.stop is None else x0]
        if plan.copies:
            again = renoise(grid, torch.cat([kept.states[-1]] * plan.copies), copy_noise, last)
            parts.append(step(output, grid, again, last)[0])
        return torch.cat(parts)

    return latents


def slope_of(value: Callable[[], Tensor], parameters: Sequence[Tensor], direction: Sequence[Tensor]) -> float:
    """The derivative of a value along a direction by central differences, an error of order h^4 (Richardson)."""
    estimates = []
    with torch.no_grad():
        for h in (2e-4, 1e-4):
            sides = []
            for sign in (1, -2):
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=sign * h)
                sides.append(float(value()))
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=h)
            estimates.append((sides[0] - sides[1]) / (2 * h))
    return (4 * estimates[1] - estimates[0]) / 3
