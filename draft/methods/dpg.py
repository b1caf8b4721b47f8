"""Deterministic policy gradient: each sampling step climbs a critic's guess of the final reward.

The DRaFT paper (Clark et al., arXiv 2309.17400) reports that such a method did worse than DRaFT, and nothing of how it
was made. Everything here is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from draft.diffusion.sampling import move, predict
from draft.diffusion.schedule import Grid
from draft.errors import DraftError

Value = Callable[[Tensor], Tensor]
"""Latents after a step, (B, C, ...), to a guess of each one's final reward, (B,)."""


def actor_loss(grid: Grid, x: Tensor, out: Tensor, i: int, value: Value) -> Tensor:
    """Each sample's -Q(x', i + 1, c) at the mean x' of step i.

    Its gradient is -(dQ/dx')^T dF_i/dtheta. With dQ/dx' the exact derivative of the final reward, which is DRaFT's
    adjoint lam_{i+1}, the sum over i is full DRaFT; with R itself at the last step alone it is DRaFT-1.

    Args:
        grid: The sampling grid.
        x: Latents x_i, (B, C, ...), without gradient.
        out: The (guided) output there.
        i: Step.
        value: Q(., i + 1, c).

    Returns:
        (B,).
    """
    return -value(move(grid, *predict(grid, x, out, i), i))


class Critic(nn.Module):
    """Guesses the final reward from a latent, its noise level and its prompt: three convolutions, then a mean.

    Args:
        rank: Number of dimensions behind the channels: 1, 2 or 3.
        channels: Channels C of the latents.
        text: Length F of a prompt's conditioning as a vector.
        width: Channels of the critic.
        generator: Of its first weights, on the CPU.

    Raises:
        DraftError: There is no convolution of this rank.
    """

    def __init__(self, *, rank: int, channels: int, text: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        if rank not in kinds:
            raise DraftError(
                f"dpg needs latents with 1, 2 or 3 dimensions behind the channels (got {rank})",
                hint="ddpo and best_of_n take latents of any rank",
            )
        convolution = kinds[rank]
        # Without torch's own first weights, which would come from its global generator.
        self.condition = nn.utils.skip_init(nn.Linear, text + 2, width)
        self.layers = nn.ModuleList(
            nn.utils.skip_init(convolution, size, width, 3, stride=stride, padding=1)
            for size, stride in ((channels, 1), (width, 2), (width, 2))
        )
        self.last = nn.utils.skip_init(nn.Linear, width, 1)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                inputs = self.get_parameter(name.replace("bias", "weight"))[0].numel()
                bound = 1 / math.sqrt(inputs)
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """Guess.

        Args:
            x: Latents, (B, C, ...).
            level: Their (alpha, sigma), (B, 2).
            text: The prompts' conditioning as vectors, (B, F).

        Returns:
            Q, (B,).
        """
        pooled = nn.functional.layer_norm(text.to(x.dtype), text.shape[-1:])
        told = self.condition(torch.cat([pooled, level], dim=1)).reshape(len(x), -1, *[1] * (x.dim() - 2))
        for layer in self.layers:
            x = nn.functional.silu(layer(x) + told)
        return self.last(x.flatten(2).mean(2)).squeeze(1)
