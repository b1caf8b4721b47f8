"""The sampler: an explicit grid of noise levels and pure functions of tensors; nothing here remembers a step.

Notation (used by every method): step i = 0..T-1 counts steps already done, so i = 0 starts from pure noise. The net is
called at time t_i, where the latent is x_i = alpha_i x0 + sigma_i e; rho_i = sigma_i / alpha_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from draft.diffusion.settings import SamplerSettings
from draft.errors import DraftError

Prediction = Literal["epsilon", "v_prediction"]

Net = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents (N, C, ...), time (scalar tensor), embeddings (N, L, D)) -> the network's output, like the latents."""

Output = Callable[[Tensor, int], Tensor]
"""(latents (B, C, ...) or k stacked batches (k B, C, ...), step i) -> the guided output."""


@dataclass(frozen=True)
class Schedule:
    """A trained model's noise schedule.

    Args:
        alphas_cumprod: alpha_t^2 for the N training times t = 0..N-1.
        prediction: What the network predicts: e (`epsilon`) or v = alpha e - sigma x0 (`v_prediction`).
        steps_offset: Added to the times of `leading` spacing.
    """

    alphas_cumprod: tuple[float, ...]
    prediction: Prediction = "epsilon"
    steps_offset: int = 0


@dataclass(frozen=True)
class Grid:
    """T sampling steps: from (alpha[i], sigma[i]) at time times[i] to (next_alpha[i], next_sigma[i]).

    Args:
        times: The times t_i given to the net, noisiest first.
        alpha: Signal level at t_i.
        sigma: Noise level at t_i.
        next_alpha: Signal level where step i lands.
        next_sigma: Noise level where step i lands; 0 in the last step if it lands on the clean image.
        prediction: What the network predicts.

    Note:
        A step's landing level is diffusers': that of t_i - N // T, which is one training time beside t_{i+1} where
        T does not divide N and under `linspace`. Images therefore equal those of diffusers' pipeline.
    """

    times: tuple[int, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    next_alpha: tuple[float, ...]
    next_sigma: tuple[float, ...]
    prediction: Prediction = "epsilon"

    @property
    def steps(self) -> int:
        """The number T of steps."""
        return len(self.times)


def make_grid(schedule: Schedule, settings: SamplerSettings) -> Grid:
    """Spread T steps over a schedule as diffusers' `DDIMScheduler` does.

    Args:
        schedule: The model's noise schedule of N times.
        settings: Steps, spacing and end.

    Returns:
        The grid.

    Raises:
        DraftError: More steps than training times, a time beyond the schedule, or an epsilon network at a level
            without signal (alpha = 0).

    Note:
        Two deliberate differences from diffusers: x0 is never clipped, and `final: one` is honoured for every T. With
        trailing spacing and e.g. T = 15, diffusers lands on the first alpha in spite of `set_alpha_to_one=True`.
    """
    total, steps = len(schedule.alphas_cumprod), settings.num_inference_steps
    if steps > total:
        raise DraftError(f"num_inference_steps must be at most {total}, the model's training steps (got {steps})")
    if settings.spacing == "trailing":
        times = np.round(np.arange(total, 0, -total / steps)).astype(np.int64)[:steps] - 1
    elif settings.spacing == "leading":
        times = (np.arange(steps) * (total // steps))[::-1] + schedule.steps_offset
    else:
        times = np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)
    if int(times[0]) >= total:
        raise DraftError(
            f"leading spacing with {steps} steps and offset {schedule.steps_offset} needs time {int(times[0])}, "
            f"beyond the last, {total - 1}",
            hint="use spacing: trailing",
        )
    squares = schedule.alphas_cumprod
    here = [squares[int(t)] for t in times]
    landing = [squares[max(int(t) - total // steps, 0)] for t in times[:-1]]
    landing.append(1.0 if settings.final == "one" else squares[0])
    if schedule.prediction == "epsilon" and min(here) <= 0:
        raise DraftError(
            "the grid starts at alpha = 0, where an epsilon network says nothing about the image",
            hint="use spacing: leading, or a v-prediction model",
        )
    return Grid(
        times=tuple(int(t) for t in times),
        alpha=tuple(math.sqrt(a) for a in here),
        sigma=tuple(math.sqrt(1 - a) for a in here),
        next_alpha=tuple(math.sqrt(a) for a in landing),
        next_sigma=tuple(math.sqrt(1 - a) for a in landing),
        prediction=schedule.prediction,
    )


def last_step_sensitivity(grid: Grid) -> float:
    """How much the result moves per unit of the network's output in the last step, |d x_T / d out|.

    DRaFT-1 and DRaFT-LV learn through this factor alone. Epsilon: |alpha' rho - sigma'|; v:
    |alpha' sigma - sigma' alpha|, where the primes are the level the last step lands on.

    Args:
        grid: The sampling grid.

    Returns:
        A number >= 0; 0.012 for Stable Diffusion's stock grid, 0.134 for 50 trailing steps to the clean image.
    """
    a, s, a_next, s_next = grid.alpha[-1], grid.sigma[-1], grid.next_alpha[-1], grid.next_sigma[-1]
    if grid.prediction == "epsilon":
        return abs(a_next * s / a - s_next)
    return abs(a_next * s - s_next * a)


def predict(grid: Grid, x: Tensor, out: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Split a latent into the clean latent and the noise that the network's output says it holds.

    Epsilon: e = out, x0 = (x - sigma e) / alpha. V: x0 = alpha x - sigma out, e = sigma x + alpha out (Salimans & Ho,
    arXiv 2202.00512, appendix D).

    Args:
        grid: The sampling grid.
        x: Latents at step i, any shape.
        out: The (guided) network output there, same shape.
        i: Step, 0..T-1.

    Returns:
        (x0, e), both of the latents' shape.
    """
    a, s = grid.alpha[i], grid.sigma[i]
    if grid.prediction == "epsilon":
        return (x - s * out) / a, out
    return a * x - s * out, s * x + a * out


def move(grid: Grid, x0: Tensor, e: Tensor, i: int) -> Tensor:
    """Go to where step i lands: alpha' x0 + sigma' e (DDIM, eta = 0; arXiv 2010.02502, equation 12).

    Args:
        grid: The sampling grid.
        x0: Predicted clean latents.
        e: Predicted noise.
        i: Step, 0..T-1.

    Returns:
        Latents after step i.
    """
    if grid.next_sigma[i] == 0:
        return x0
    return grid.next_alpha[i] * x0 + grid.next_sigma[i] * e


def renoise(grid: Grid, x0: Tensor, noise: Tensor, i: int) -> Tensor:
    """Put noise back on clean latents, to the level at which step i starts: alpha_i x0 + sigma_i noise."""
    return grid.alpha[i] * x0 + grid.sigma[i] * noise


def guide(net: Net, grid: Grid, embeddings: Tensor, unconditional: Tensor, scale: float) -> Output:
    """Classifier-free guidance as one doubled batch: out = u + g (c - u) (arXiv 2207.12598).

    Both branches carry gradient. With g = 1 only the conditional branch is computed.

    Args:
        net: The network.
        grid: The sampling grid; its times go to the net.
        embeddings: Prompt embeddings, (B, L, D).
        unconditional: The unconditional prompt's, (1, L, D).
        scale: Guidance scale g >= 1.

    Returns:
        The guided output as a function of (latents, step). k stacked batches of latents, (k B, ...), use the
        embeddings k times.
    """
    times = torch.tensor(grid.times, device=embeddings.device)
    batch = embeddings.shape[0]
    doubled = torch.cat([unconditional.expand_as(embeddings), embeddings]) if scale != 1 else embeddings

    def output(x: Tensor, i: int) -> Tensor:
        repeats = x.shape[0] // batch
        if scale == 1:
            return net(x, times[i], embeddings if repeats == 1 else _stack(embeddings, repeats))
        both = doubled if repeats == 1 else torch.cat([_stack(half, repeats) for half in doubled.chunk(2)])
        u, c = net(torch.cat([x, x]), times[i], both).chunk(2)
        return u + scale * (c - u)

    return output


def sample(output: Output, grid: Grid, x: Tensor) -> Tensor:
    """Run all steps from noise to the final latents, in the caller's gradient mode.

    Args:
        output: The guided network.
        grid: The sampling grid.
        x: Standard normal noise, (B, C, ...).

    Returns:
        Final latents, (B, C, ...).
    """
    for i in range(grid.steps):
        x, _ = step(output, grid, x, i)
    return x


def step(output: Output, grid: Grid, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """One sampling step: guided output, split into (x0, e), move; returns (latents after the step, x0)."""
    x0, e = predict(grid, x, output(x, i), i)
    return move(grid, x0, e, i), x0


def _stack(embeddings: Tensor, repeats: int) -> Tensor:
    return embeddings.repeat(repeats, *[1] * (embeddings.dim() - 1))
