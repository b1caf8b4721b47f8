"""What a picture costs, counted where it is spent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.guidance import Net


@dataclass
class Cost:
    """Work on single images; a batch of B counts B times.

    Args:
        network_calls: Calls of the network, each branch of guidance and each recomputation counted.
        network_gradients: Backward passes of the network.
        reward_evaluations: Images scored.
        reward_gradients: Of those, images whose gradient was taken.
    """

    network_calls: int = 0
    network_gradients: int = 0
    reward_evaluations: int = 0
    reward_gradients: int = 0


def counted(net: Net, cost: Cost) -> Net:
    """A network that counts its calls.

    Args:
        net: The network.
        cost: Where they are counted.

    Returns:
        The same function.
    """

    def call(x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        cost.network_calls += len(x)
        out = net(x, time, conditioning)
        if torch.is_grad_enabled() and out.requires_grad:
            out.register_hook(lambda gradient: _add_gradients(cost, len(gradient)))
        return out

    return call


def _add_gradients(cost: Cost, count: int) -> None:
    cost.network_gradients += count
