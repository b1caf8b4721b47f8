"""What Stable Diffusion XL's decoder keeps for backward at full size, without and with recomputed blocks.

Shapes alone are computed (fake tensors), so that it runs anywhere in seconds:

    python benchmarks/sdxl_decoder.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from draft.diffusion.families.components import recompute_blocks
from draft.diffusion.families.sdxl_single_file import PUBLISHED


def saved_bytes(work: Callable[[], Tensor], recomputed: list[nn.Module]) -> int:
    """Bytes that backward needs after a forward pass: what autograd saves, and what recomputed modules begin with."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    def begins(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    hooks = [module.register_forward_pre_hook(begins) for module in recomputed]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    for hook in hooks:
        hook.remove()
    del result
    return sum(storage.nbytes() for storage in storages.values())


def recomputed_bytes(block: Any, decode: Callable[[], Tensor]) -> int:
    """Bytes that backward through one block needs, while it is recomputed."""
    inputs: list[Tensor] = []

    def begins(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0])

    hook = block.register_forward_pre_hook(begins)
    decode()
    hook.remove()
    first = inputs[0].detach().requires_grad_()
    again = saved_bytes(lambda: block(first, *[None] * isinstance(block, ResnetBlock2D)), [])
    return again - first.untyped_storage().nbytes()  # its input is kept anyway


def main() -> None:
    """Print both sizes, the largest recomputed block, and the ratio."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--side", type=int, default=1024, help="of the image, pixels")
    side = arguments.parse_args().side
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.bfloat16)
        vae: Any = AutoencoderKL.from_config(PUBLISHED["vae"]).eval().requires_grad_(False)
        latents = torch.randn(1, 4, side // 8, side // 8, requires_grad=True)
        up = vae.decoder.up_blocks
        blocks = [
            vae.decoder.mid_block,
            *(layer for block in up for layer in (*block.resnets, *(block.upsamplers or ()))),
        ]
        decode = lambda: vae.decode(latents, return_dict=False)[0]  # noqa: E731
        plain = saved_bytes(decode, [])
        recompute_blocks(vae, True)
        less = saved_bytes(decode, blocks)
        recompute_blocks(vae, False)
        largest = 0
        for block in blocks:
            size = recomputed_bytes(block, decode)
            largest = max(largest, size)
    print(f"{side} px, one image, bfloat16: all kept {plain / 1e9:.2f} GB, recomputed {less / 1e9:.2f} GB")
    print(f"kept: 1/{plain / less:.1f}; at its peak, with the largest block: 1/{plain / (less + largest):.1f}")


if __name__ == "__main__":
    main()
