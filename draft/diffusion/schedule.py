"""The sampling grid: which noise levels a rollout visits, as explicit numbers.

Notation (used by every method): step i = 0..T-1 counts steps already done, so i = 0 starts from pure noise. The net is
called at time t_i, where the latent is x_i = alpha_i x0 + sigma_i e; rho_i = sigma_i / alpha_i. Diffusion models have
alpha^2 + sigma^2 = 1, flow matching has alpha = 1 - s and sigma = s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from draft.diffusion.settings import SamplerSettings, flow_problems
from draft.errors import DraftError

Prediction = Literal["epsilon", "v_prediction", "flow"]


@dataclass(frozen=True)
class Schedule:
    """A diffusion model's noise schedule.

    Args:
        alphas_cumprod: alpha_t^2 for the N training times t = 0..N-1.
        prediction: What the network predicts: e (`epsilon`) or v = alpha e - sigma x0 (`v_prediction`).
        steps_offset: Added to the times of `leading` spacing.
    """

    alphas_cumprod: tuple[float, ...]
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    steps_offset: int = 0


@dataclass(frozen=True)
class FlowSchedule:
    """A flow-matching model's noise levels: x_s = (1 - s) x0 + s e, and the network predicts v = e - x0.

    Args:
        shift: Moves a level s to shift s / (1 + (shift - 1) s) (arXiv 2403.03206, equation 23); 3 for SD3, 1 for none.
        times: The time given to the network at s = 1; at s it is s times that.
    """

    shift: float = 1.0
    times: int = 1000


@dataclass(frozen=True)
class Grid:
    """T sampling steps: from (alpha[i], sigma[i]) at time times[i] to (next_alpha[i], next_sigma[i]).

    Args:
        times: The times t_i given to the net, noisiest first; whole numbers in diffusion models.
        alpha: Signal level at t_i.
        sigma: Noise level at t_i.
        next_alpha: Signal level where step i lands.
        next_sigma: Noise level where step i lands; 0 in the last step if it lands on the clean image.
        prediction: What the network predicts.
        std: Standard deviation of the fresh noise that step i adds; empty: none does.

    Note:
        A step's landing level is diffusers': that of t_i - N // T, which is one training time beside t_{i+1} where
        T does not divide N and under `linspace`. Images therefore equal those of diffusers' pipeline.
    """

    times: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    next_alpha: tuple[float, ...]
    next_sigma: tuple[float, ...]
    prediction: Prediction = "epsilon"
    std: tuple[float, ...] = ()

    @property
    def steps(self) -> int:
        """The number T of steps."""
        return len(self.times)

    @property
    def stochastic(self) -> bool:
        """Whether any step adds fresh noise."""
        return any(self.std)


def make_grid(schedule: Schedule | FlowSchedule, settings: SamplerSettings) -> Grid:
    """Spread T steps over a model's noise levels as diffusers' schedulers do.

    With eta > 0 step i adds noise of std = eta sigma' sqrt(1 - (alpha_i sigma' / (alpha' sigma_i))^2), the primes being
    where it lands (arXiv 2010.02502, equation 16; the same formula serves flow matching).

    Args:
        schedule: The model's noise schedule.
        settings: Steps, spacing, end and eta.

    Returns:
        The grid.

    Raises:
        DraftError: More steps than training times, a time beyond the schedule, an epsilon network at a level without
            signal (alpha = 0), or an end or a spacing that flow matching does not have.

    Note:
        Two deliberate differences from diffusers: x0 is never clipped, and `final: one` is honoured for every T. With
        trailing spacing and e.g. T = 15, diffusers lands on the first alpha in spite of `set_alpha_to_one=True`.
    """
    levels = _flow_levels if isinstance(schedule, FlowSchedule) else _diffusion_levels
    times, start, landing = levels(schedule, settings)  # type: ignore[arg-type]
    prediction = "flow" if isinstance(schedule, FlowSchedule) else schedule.prediction
    std = tuple(_std(*start[i], *landing[i]) * settings.eta for i in range(len(times))) if settings.eta else ()
    (alpha, sigma), (next_alpha, next_sigma) = zip(*start, strict=True), zip(*landing, strict=True)
    return Grid(times, alpha, sigma, next_alpha, next_sigma, prediction, std)


Levels = tuple[tuple[float, ...], list[tuple[float, float]], list[tuple[float, float]]]
"""Times, and (alpha, sigma) where each step starts and lands."""


def _diffusion_levels(schedule: Schedule, settings: SamplerSettings) -> Levels:
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
    start = [squares[int(t)] for t in times]
    landing = [squares[max(int(t) - total // steps, 0)] for t in times[:-1]]
    landing.append(1.0 if settings.final == "one" else squares[0])
    if schedule.prediction == "epsilon" and min(start) <= 0:
        raise DraftError(
            "the grid starts at alpha = 0, where an epsilon network says nothing about the image",
            hint="use spacing: leading, or a v-prediction model",
        )
    both = [[(math.sqrt(a), math.sqrt(1 - a)) for a in squares] for squares in (start, landing)]
    return tuple(int(t) for t in times), both[0], both[1]


def _flow_levels(schedule: FlowSchedule, settings: SamplerSettings) -> Levels:
    steps = settings.num_inference_steps
    for problem in flow_problems(settings):
        raise DraftError(problem.what, hint=problem.hint)
    # What diffusers' scheduler does by itself (`linspace`) shifts the last level twice.
    last = 1 / steps if settings.spacing == "trailing" else _shifted(1 / schedule.times, schedule.shift)
    levels = [_shifted(float(s), schedule.shift) for s in np.linspace(1.0, last, steps)] + [0.0]
    both = [(1 - s, s) for s in levels]
    return tuple(s * schedule.times for s in levels[:-1]), both[:-1], both[1:]


def _shifted(level: float, shift: float) -> float:
    return shift * level / (1 + (shift - 1) * level)


def _std(alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> float:
    if sigma == 0:
        return 0.0
    return next_sigma * math.sqrt(max(0.0, 1 - (alpha * next_sigma / (next_alpha * sigma)) ** 2))


def last_step_sensitivity(grid: Grid) -> float:
    """How much the result moves per unit of the network's output in the last step, |d x_T / d out|.

    DRaFT-1 and DRaFT-LV learn through this factor alone.

    Args:
        grid: The sampling grid.

    Returns:
        A number >= 0; 0.012 for Stable Diffusion's stock grid, 0.134 for 50 trailing steps to the clean image.
    """
    return step_sensitivities(grid)[-1]


def step_sensitivities(grid: Grid) -> tuple[float, ...]:
    """How much each step's result moves per unit of the network's output there, |d x_{i+1} / d out_i|.

    Epsilon: |alpha' rho - sigma''|; v: |alpha' sigma - sigma'' alpha|; flow: |alpha' s - sigma'' (1 - s)|, where
    alpha' is the level that the step lands on and sigma'' = sqrt(sigma'^2 - std^2).

    Args:
        grid: The sampling grid.

    Returns:
        T numbers >= 0.
    """
    sensitivities = []
    for i in range(grid.steps):
        a, s, a_next = grid.alpha[i], grid.sigma[i], grid.next_alpha[i]
        s_next = noise_kept(grid, i)
        sensitivities.append(
            abs(a_next * s / a - s_next) if grid.prediction == "epsilon" else abs(a_next * s - s_next * a)
        )
    return tuple(sensitivities)


def noise_kept(grid: Grid, i: int) -> float:
    """The share of the predicted noise that step i keeps beside fresh noise, sqrt(sigma'^2 - std^2)."""
    if not grid.std:
        return grid.next_sigma[i]
    return math.sqrt(max(0.0, grid.next_sigma[i] ** 2 - grid.std[i] ** 2))
