"""A model's networks by component: read in their precision, frozen and moved when first asked for, dropped by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from draft.diffusion.families.pretrained import undisturbed
from draft.diffusion.lora import adapters_kept


class Components:
    """Networks that exist once they are asked for, frozen and in evaluation mode.

    Args:
        read: Reads a component in a precision, from its file into the CPU's memory.
        device: Where the networks go.
        dtype: Their precision.
        exceptions: Component to its own precision, where that is another one.

    Example:
        >>> layers = Components(lambda name, dtype: nn.Linear(2, 2, dtype=dtype), torch.device("cpu"), torch.bfloat16)
        >>> layers["unet"].weight.dtype, layers["unet"] is layers["unet"]
        (torch.bfloat16, True)
    """

    def __init__(
        self,
        read: Callable[[str, torch.dtype], nn.Module],
        device: torch.device,
        dtype: torch.dtype,
        *,
        exceptions: Mapping[str, torch.dtype] = MappingProxyType({}),
    ) -> None:
        self._read, self._device, self._dtype, self._exceptions = read, device, dtype, dict(exceptions)
        self._networks: dict[str, Any] = {}
        self._dropped: set[str] = set()
        self._recomputed: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """A network, read now if it was not yet.

        Args:
            name: The component.

        Returns:
            The network.

        Raises:
            RuntimeError: It was dropped.
            DraftError: It cannot be read.
        """
        if name in self._dropped:
            raise RuntimeError(f"the {name} was dropped")
        if name not in self._networks:
            dtype = self._exceptions.get(name, self._dtype)
            with undisturbed():
                network = self._read(name, dtype)
            # torch's own `to`: diffusers' warns of casts.
            network = nn.Module.to(network.requires_grad_(False).eval(), self._device, dtype)
            if name in self._recomputed:
                recompute_blocks(network, True)
            self._networks[name] = network
        return self._networks[name]

    def dropped(self, name: str) -> bool:
        """Whether a network was dropped."""
        return name in self._dropped

    def drop(self, names: Iterable[str]) -> None:
        """Free networks' memory; asking for one again is an error."""
        for name in names:
            self._dropped.add(name)
            self._networks.pop(name, None)

    def forget(self) -> None:
        """Free all networks' memory; asking for one reads it again."""
        self._networks.clear()

    def recompute(self, names: Iterable[str], on: bool) -> None:
        """Recompute the blocks of networks in backward, also of those that are read later.

        Args:
            names: The components.
            on: Whether to, or to keep activations again.
        """
        chosen = set(names)
        self._recomputed = self._recomputed | chosen if on else self._recomputed - chosen
        for name in chosen & self._networks.keys():
            recompute_blocks(self._networks[name], on)


def recompute_blocks(network: Any, on: bool) -> bool:
    """Let a diffusers network recompute its blocks in backward instead of keeping their activations; the same numbers.

    Args:
        network: The network, changed in place.
        on: Whether to.

    Returns:
        Whether it can; one that cannot stays as it is.
    """
    if not can_recompute(network):
        return False
    if on:
        network.enable_gradient_checkpointing(_recomputed)
    else:
        network.disable_gradient_checkpointing()
    return True


def can_recompute(network: Any) -> bool:
    """Whether a network can recompute its blocks, as diffusers says of it."""
    return bool(getattr(network, "_supports_gradient_checkpointing", False))


def _recomputed(block: Any, *inputs: Any) -> Any:
    # A decoder's last block alone holds half of all its activations, so its layers are recomputed one by one.
    if isinstance(block, UpDecoderBlock2D):
        sample, embedding = inputs
        for layer in block.resnets:
            sample = _recomputed(layer, sample, embedding)
        for layer in block.upsamplers or ():
            sample = _recomputed(layer, sample)
        return sample
    # The backward pass may come after adapters were switched, and the block must be computed as it was. Nothing in it
    # is random, so there is no RNG state to keep.
    contexts = partial(adapters_kept, block)
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
