"""Training on a model's own samples: weights that favour the better ones, and the denoising loss they weigh.

Reward-weighted regression and its sparse form, as the baselines of DDPO (Black et al., arXiv 2305.13301) have them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draft.diffusion.schedule import Grid
from draft.methods.values.best_of_n import Selection


def sample_weights(
    rewards: Tensor,
    prompts: Tensor,
    *,
    selection: Selection,
    sharpness: float = 0.0,
    share: float = 1.0,
    per_prompt: bool = False,
) -> Tensor:
    """How much each of N samples counts.

    Args:
        rewards: R, (N,).
        prompts: The number of each sample's prompt, (N,).
        selection: `weighted`: w = N softmax(b R); `top`: 1 for the best share, else 0; `best`: 1 for the best of
            each prompt.
        sharpness: b.
        share: The share that `top` keeps, at least one sample.
        per_prompt: Whether softmax and share are taken over each prompt's samples.

    Returns:
        w >= 0, (N,); with `weighted` their sum is N.
    """
    if selection != "best" and not per_prompt:
        prompts = torch.zeros_like(prompts)
    found = torch.zeros_like(rewards)
    for prompt in prompts.unique():
        same = prompts == prompt
        inside = rewards[same]
        if selection == "weighted":
            found[same] = len(inside) * (sharpness * inside).softmax(0)
            continue
        kept = 1 if selection == "best" else max(1, round(share * len(inside)))
        ones = torch.zeros_like(inside)
        ones[inside.topk(kept).indices] = 1
        found[same] = ones
    return found


def concentration(weights: Tensor) -> float:
    """The share of samples that hold 90 % of the weight: 0.9 where all are alike, near 0 where one holds it all."""
    held = weights.double().sort(descending=True).values.cumsum(0) / weights.double().sum()
    return float(int((held < 0.9 - 1e-9).sum()) + 1) / len(weights)


def denoising_target(grid: Grid, y: Tensor, z: Tensor, i: int) -> Tensor:
    """What the network should say at alpha_i y + sigma_i z: z, or alpha z - sigma y, or in flow matching z - y.

    Args:
        grid: The grid of noise levels.
        y: Clean latents, (B, C, ...).
        z: The noise that was put on them.
        i: Noise level.

    Returns:
        (B, C, ...).
    """
    match grid.prediction:
        case "epsilon":
            return z
        case "v_prediction":
            return grid.alpha[i] * z - grid.sigma[i] * y
        case "flow":
            return z - y


def denoising_loss(grid: Grid, out: Tensor, y: Tensor, z: Tensor, i: int) -> Tensor:
    """Each sample's mean squared error of the output at alpha_i y + sigma_i z, (B,)."""
    return (out - denoising_target(grid, y, z, i)).square().flatten(1).mean(1)
