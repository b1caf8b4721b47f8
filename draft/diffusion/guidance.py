"""Classifier-free guidance, and which of its branches carry gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from draft.diffusion.sampling import Output
from draft.diffusion.schedule import Grid

Net = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents (N, C, ...), time (scalar tensor), embeddings (N, L, D)) -> the network's output, like the latents."""

GuidanceGradient = Literal["both", "detached", "off"]
"""What a recorded call does: both branches with gradient, the unconditional one detached, or no guidance at all."""


def guide(
    net: Net,
    grid: Grid,
    embeddings: Tensor,
    unconditional: Tensor,
    scale: float,
    *,
    gradient: GuidanceGradient = "both",
) -> Output:
    """Classifier-free guidance as one doubled batch: out = u + g (c - u) (arXiv 2207.12598).

    With g = 1 only the conditional branch is computed. What both branches have in common has derivative 1 in the
    LoRA; with u detached it has g, so that is another direction, not only a longer gradient.

    Args:
        net: The network.
        grid: The sampling grid; its times go to the net.
        embeddings: Prompt embeddings, (B, L, D).
        unconditional: The unconditional prompt's, (1, L, D).
        scale: Guidance scale g >= 1.
        gradient: `both` branches carry gradient; `detached`: u is computed without; `off`: the output is c alone.

    Returns:
        The guided output as a function of (latents, step). k stacked batches of latents, (k B, ...), use the
        embeddings k times.
    """
    times = torch.tensor(grid.times, device=embeddings.device)
    batch = embeddings.shape[0]
    plain = scale == 1 or gradient == "off"
    doubled = embeddings if plain else torch.cat([unconditional.expand_as(embeddings), embeddings])

    def output(x: Tensor, i: int) -> Tensor:
        repeats = x.shape[0] // batch
        if plain:
            return net(x, times[i], _stack(embeddings, repeats))
        if gradient == "detached" and torch.is_grad_enabled():
            with torch.no_grad():
                u = net(x, times[i], _stack(unconditional.expand_as(embeddings), repeats))
            c = net(x, times[i], _stack(embeddings, repeats))
        else:
            both = doubled if repeats == 1 else torch.cat([_stack(half, repeats) for half in doubled.chunk(2)])
            u, c = net(torch.cat([x, x]), times[i], both).chunk(2)
        return u + scale * (c - u)

    return output


def _stack(embeddings: Tensor, repeats: int) -> Tensor:
    return embeddings if repeats == 1 else embeddings.repeat(repeats, *[1] * (embeddings.dim() - 1))
