"""The sampler's pieces as pure functions of tensors; nothing here remembers a step. Notation: see the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from draft.diffusion.schedule import Grid, noise_kept

Output = Callable[[Tensor, int], Tensor]
"""(latents (B, C, ...) or k stacked batches (k B, C, ...), step i) -> the guided output."""


def predict(grid: Grid, x: Tensor, out: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Split a latent into the clean latent and the noise that the network's output says it holds.

    Epsilon: e = out, x0 = (x - sigma e) / alpha. V: x0 = alpha x - sigma out, e = sigma x + alpha out (Salimans & Ho,
    arXiv 2202.00512, appendix D). Flow: x0 = x - s out, e = x + (1 - s) out.

    Args:
        grid: The sampling grid.
        x: Latents at step i, any shape.
        out: The (guided) network output there, same shape.
        i: Step, 0..T-1.

    Returns:
        (x0, e), both of the latents' shape.
    """
    a, s = grid.alpha[i], grid.sigma[i]
    match grid.prediction:
        case "epsilon":
            return (x - s * out) / a, out
        case "v_prediction":
            return a * x - s * out, s * x + a * out
        case "flow":
            return x - s * out, x + a * out


def move(grid: Grid, x0: Tensor, e: Tensor, i: int, z: Tensor | None = None) -> Tensor:
    """Go to where step i lands: alpha' x0 + sqrt(sigma'^2 - std^2) e + std z (DDIM, arXiv 2010.02502, equation 12).

    Args:
        grid: The sampling grid.
        x0: Predicted clean latents.
        e: Predicted noise.
        i: Step, 0..T-1.
        z: Fresh standard normal noise; without it, the mean of the step.

    Returns:
        Latents after step i.
    """
    if grid.next_sigma[i] == 0:
        return x0
    mean = grid.next_alpha[i] * x0 + noise_kept(grid, i) * e
    return mean if z is None or not grid.std else mean + grid.std[i] * z


def renoise(grid: Grid, x0: Tensor, noise: Tensor, i: int) -> Tensor:
    """Put noise back on clean latents, to the level at which step i starts: alpha_i x0 + sigma_i noise."""
    return grid.alpha[i] * x0 + grid.sigma[i] * noise


def step(output: Output, grid: Grid, x: Tensor, i: int, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One sampling step: guided output, split into (x0, e), move; returns (latents after the step, x0)."""
    x0, e = predict(grid, x, output(x, i), i)
    return move(grid, x0, e, i, z), x0


def sample(output: Output, grid: Grid, x: Tensor, fresh: Sequence[Tensor] | None = None) -> Tensor:
    """Run all steps from noise to the final latents, in the caller's gradient mode.

    Args:
        output: The guided network.
        grid: The sampling grid.
        x: Standard normal noise, (B, C, ...).
        fresh: Standard normal noise of each step, T tensors like `x`; needed where the grid is stochastic.

    Returns:
        Final latents, (B, C, ...).

    Raises:
        ValueError: The grid is stochastic and there is no fresh noise.
    """
    check_fresh(grid, fresh)
    for i in range(grid.steps):
        x, _ = step(output, grid, x, i, fresh[i] if fresh is not None else None)
    return x


def check_fresh(grid: Grid, fresh: Sequence[Tensor] | None) -> None:
    """Refuse to sample a stochastic grid without its noise.

    Args:
        grid: The sampling grid.
        fresh: The noise of each step; None: there is none.

    Raises:
        ValueError: There is none.
    """
    if grid.stochastic and fresh is None:
        raise ValueError("the grid has eta > 0, so each step needs fresh noise")
