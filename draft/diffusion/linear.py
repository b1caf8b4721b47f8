"""The sampler as a straight path: the form in which every method that drops the network's Jacobians is written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from draft.diffusion.sampling import predict
from draft.diffusion.schedule import Grid
from draft.diffusion.settings import Frozen
from draft.errors import DraftError


@dataclass(frozen=True)
class LinearForm:
    """The deterministic sampler as x_{i+1} = carry_i x_i + gain_i slope_i.

    With y = x / c and a time tau, a step is y' = y + (tau' - tau) slope: for the slope e, c = alpha and tau = sigma /
    alpha; for the slope u = e - x0, which is a flow model's velocity, c = alpha + sigma and tau = sigma / c. Both are
    the same sampler (every diffusion model is a flow model in x / (alpha + sigma)); they differ in what is
    constant where a slope is held fixed, hence in a surrogate's gradient.

    Args:
        frozen: Which slope.
        carry: c' / c of each step.
        gain: c' (tau' - tau) of each step.
        scale: c at the start of each step.
        tau: The time there, falling.
    """

    grid: Grid
    frozen: Literal["epsilon", "velocity"]
    carry: tuple[float, ...]
    gain: tuple[float, ...]
    scale: tuple[float, ...]
    tau: tuple[float, ...]

    def slope(self, x: Tensor, out: Tensor, i: int) -> Tensor:
        """The slope at step i from the network's output there.

        Args:
            x: Latents at step i.
            out: The (guided) output at x.
            i: Step.

        Returns:
            e, or e - x0.
        """
        x0, e = predict(self.grid, x, out, i)
        return e if self.frozen == "epsilon" else e - x0

    def clean(self, x: Tensor, slope: Tensor, i: int) -> Tensor:
        """The clean latent that a slope at step i leads to: (x / c) - tau slope, as c = 1 and tau = 0 there."""
        return x / self.scale[i] - self.tau[i] * slope

    def weights(self, start: int, stop: int) -> tuple[float, list[float]]:
        """The path from level `start` to level `stop` as x_stop = carry x_start + sum_i w_i slope_i.

        Args:
            start: First level, 0..T.
            stop: Last level, at least `start`.

        Returns:
            (carry, [w_i for i in start..stop-1]).
        """
        carry, weights = 1.0, []
        for i in reversed(range(start, stop)):
            weights.insert(0, carry * self.gain[i])
            carry *= self.carry[i]
        return carry, weights


def linear_form(grid: Grid, frozen: Frozen = "auto") -> LinearForm:
    """The straight path of a grid.

    Args:
        grid: The sampling grid, deterministic.
        frozen: Which slope; `auto`: velocity in flow matching and on a grid that starts without signal, else epsilon.

    Returns:
        The form.

    Raises:
        DraftError: The slope e on a grid that starts without signal (alpha = 0), where x / alpha does not exist.
    """
    noise_alone = min(grid.alpha) <= 0
    automatic: Literal["epsilon", "velocity"] = "velocity" if grid.prediction == "flow" or noise_alone else "epsilon"
    slope = automatic if frozen == "auto" else frozen
    if slope == "epsilon" and noise_alone:
        raise DraftError(
            "method.frozen must be 'velocity' on a grid that starts from noise alone (got 'epsilon', and alpha = 0)",
            hint="frozen: velocity or auto",
        )

    def level(alpha: float, sigma: float) -> tuple[float, float]:
        c = alpha if slope == "epsilon" else alpha + sigma
        return c, sigma / c

    start = [level(*pair) for pair in zip(grid.alpha, grid.sigma, strict=True)]
    landing = [level(*pair) for pair in zip(grid.next_alpha, grid.next_sigma, strict=True)]
    pairs = list(zip(start, landing, strict=True))
    return LinearForm(
        grid=grid,
        frozen=slope,
        carry=tuple(c2 / c for (c, _), (c2, _) in pairs),
        gain=tuple(c2 * (tau2 - tau) for (_, tau), (c2, tau2) in pairs),
        scale=tuple(c for c, _ in start),
        tau=tuple(tau for _, tau in start),
    )
