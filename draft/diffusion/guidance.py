"""Guidance as each family combines it, and which of its branches carry gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.sampling import Output
from draft.diffusion.schedule import Grid
from draft.family import Guidance

Net = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(latents (N, C, ...), time (scalar tensor), conditioning of length N) -> the network's output, like the latents."""

GuidanceGradient = Literal["both", "detached", "off"]
"""What a recorded call does: both branches with gradient, the unconditional one detached, or no guidance at all."""


def without_guidance(rule: Guidance) -> float:
    """The scale at which guidance changes nothing: 0 where it is added to the conditional output, else 1."""
    return 0.0 if rule == "one_plus" else 1.0


def has_two_branches(rule: Guidance, scale: float) -> bool:
    """Whether the network is also called with the negative prompt.

    Args:
        rule: How the family combines the branches.
        scale: Guidance scale g.

    Returns:
        Whether guidance is on and needs the unconditional branch.
    """
    return rule in ("classifier_free", "one_plus", "norm_rescaled") and scale != without_guidance(rule)


def guide(
    net: Net,
    grid: Grid,
    conditioning: Conditioning,
    unconditional: Conditioning,
    scale: float,
    *,
    rule: Guidance = "classifier_free",
    patch: int = 1,
    gradient: GuidanceGradient = "both",
) -> Output:
    """Guidance as one doubled batch: out = u + g (c - u) (arXiv 2207.12598), or as the family's `rule` has it.

    `one_plus`: out = c + g (c - u). `norm_rescaled`: u + g (c - u), each token scaled to the norm that it has in c.
    `embedded`: the network's output with g in the conditioning as `guidance`, (B,); there is no u. `none`: c.

    Where g changes nothing only the conditional branch is computed. What both branches have in common has derivative 1
    in the LoRA; with u detached it has g, so that is another direction, not only a longer gradient.

    Args:
        net: The network.
        grid: The sampling grid; its times go to the net.
        conditioning: The prompts', of length B.
        unconditional: The negative prompt's, of length 1.
        scale: Guidance scale g.
        rule: How the family combines the branches.
        patch: Side, in latents, of the square that is one token; `norm_rescaled` needs it.
        gradient: `both` branches carry gradient; `detached`: u is computed without; `off`: the output is c alone.

    Returns:
        The guided output as a function of (latents, step). k stacked batches of latents, (k B, ...), use the
        conditioning k times.
    """
    times = torch.tensor(grid.times, device=conditioning.device)
    batch = len(conditioning)
    if gradient == "off":
        scale = without_guidance(rule)
    if rule == "embedded":
        conditioning = conditioning.with_tensor("guidance", torch.full((batch,), scale, device=conditioning.device))
    plain = not has_two_branches(rule, scale)
    doubled = conditioning if plain else Conditioning.cat([unconditional.expand(batch), conditioning])

    def output(x: Tensor, i: int) -> Tensor:
        repeats = x.shape[0] // batch
        if plain:
            return net(x, times[i], conditioning.repeat(repeats))
        if gradient == "detached" and torch.is_grad_enabled():
            with torch.no_grad():
                u = net(x, times[i], unconditional.expand(batch).repeat(repeats))
            c = net(x, times[i], conditioning.repeat(repeats))
        else:
            both = doubled
            if repeats > 1:
                both = Conditioning.cat([doubled[:batch].repeat(repeats), doubled[batch:].repeat(repeats)])
            u, c = net(torch.cat([x, x]), times[i], both).chunk(2)
        return _combined(rule, u, c, scale, patch)

    return output


def _combined(rule: Guidance, u: Tensor, c: Tensor, scale: float, patch: int) -> Tensor:
    if rule == "one_plus":
        return c + scale * (c - u)
    out = u + scale * (c - u)
    return out * (_token_norms(c, patch) / _token_norms(out, patch)) if rule == "norm_rescaled" else out


def _token_norms(x: Tensor, patch: int) -> Tensor:
    """The norm of each token of (B, C, ..., h, w), over its channels and its patch x patch latents, broadcast to x."""
    squares = x.square().sum(1, keepdim=True)
    if patch > 1:
        *outer, height, width = squares.shape
        squares = squares.reshape(*outer, height // patch, patch, width // patch, patch).sum((-3, -1))
        squares = squares.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
    return squares.clamp(min=torch.finfo(x.dtype).tiny).sqrt()  # where a token is 0, so is its gradient
