"""What is done to the tensors of a file in the table of layouts."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def edited(tensors: Tensors, name: str, *arguments: Any) -> Tensors:
    """Edit tensors by one of the functions here."""
    edits = (without, linear, convolutional, with_cores, hadamard, kronecker, dora, scales, magnitudes, processors)
    return next(edit for edit in edits if edit.__name__ == name)(tensors, *arguments)


def without(tensors: Tensors, pattern: str) -> Tensors:
    """Leave tensors out."""
    return {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}


def linear(tensors: Tensors) -> Tensors:
    """Write the factors of 1x1 convolutions as a linear layer's."""
    return {name: t.flatten(1) if t.ndim == 4 and t.shape[-1] == 1 else t for name, t in tensors.items()}


def convolutional(tensors: Tensors) -> Tensors:
    """Write the factors of a UNet's linear projections as a 1x1 convolution's."""
    chosen = re.compile(r".*(?<!q_)(?<!k_)(?<!v_)(?<!out_)proj_(in|out)\..*")
    return {name: t[:, :, None, None] if t.ndim == 2 and chosen.match(name) else t for name, t in tensors.items()}


def with_cores(tensors: Tensors) -> Tensors:
    """Decompose the factors of 3x3 convolutions with a core."""
    edited = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".lora_down.weight") and tensor.shape[2:] == (3, 3):
            edited[name] = tensor[..., :1, :1]
            edited[name.replace("lora_down", "lora_mid")] = torch.ones(len(tensor), *tensor.shape[:1], 3, 3)
    return edited


def hadamard(tensors: Tensors) -> Tensors:
    """Make LoHas of the modules."""
    edited = {name: tensor for name, tensor in tensors.items() if name.endswith(".alpha")}
    for name, (rows, columns) in _sizes(tensors).items():
        for number in "12":
            edited[f"{name}.hada_w{number}_a"] = torch.ones(rows, 2)
            edited[f"{name}.hada_w{number}_b"] = torch.ones(2, columns)
    return edited


def kronecker(tensors: Tensors) -> Tensors:
    """Make LoKrs of the modules."""
    edited = {name: tensor for name, tensor in tensors.items() if name.endswith(".alpha")}
    for name, (rows, columns) in _sizes(tensors).items():
        edited[f"{name}.lokr_w1"] = torch.ones(2, 2)
        edited[f"{name}.lokr_w2"] = torch.ones(rows // 2, columns // 2)
    return edited


def _sizes(tensors: Tensors) -> dict[str, tuple[int, int]]:
    names = [name.removesuffix(".lora_up.weight") for name in tensors if name.endswith(".lora_up.weight")]
    return {n: (len(tensors[f"{n}.lora_up.weight"]), tensors[f"{n}.lora_down.weight"][0].numel()) for n in names}


def dora(tensors: Tensors) -> Tensors:
    """Add DoRA's magnitudes as kohya's tools and LyCORIS name them."""
    return _with_magnitudes(tensors, ".lora_up.weight", ".dora_scale")


def scales(tensors: Tensors) -> Tensors:
    """Add them under peft's names of factors."""
    return _with_magnitudes(tensors, ".lora_B.weight", ".dora_scale")


def magnitudes(tensors: Tensors) -> Tensors:
    """Add them as peft names them."""
    return _with_magnitudes(tensors, ".lora_B.weight", ".lora_magnitude_vector")


def _with_magnitudes(tensors: Tensors, up: str, ending: str) -> Tensors:
    added = {n.removesuffix(up) + ending: torch.ones(len(t)) for n, t in tensors.items() if n.endswith(up)}
    return {**tensors, **added}


def processors(tensors: Tensors, prefix: str, single: bool = False) -> Tensors:
    """Give FLUX's attention the names of XLabs' processors, with or without q, k and v of a single block."""
    names = {"img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1"}
    names |= {"txt_attn.qkv": "qkv_lora2", "txt_attn.proj": "proj_lora2", "linear2": "proj_lora"}
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"((?:double|single)_blocks\.\d+)\.(.+)\.lora_(up|down)\.weight", name)
        assert match is not None
        renamed[f"{prefix}{match[1]}.processor.{names[match[2]]}.{match[3]}.weight"] = tensor
    if single:
        width = tensors["single_blocks.0.linear2.lora_up.weight"].shape[0]
        renamed[f"{prefix}single_blocks.0.processor.qkv_lora.down.weight"] = torch.ones(2, width)
        renamed[f"{prefix}single_blocks.0.processor.qkv_lora.up.weight"] = torch.ones(3 * width, 2)
    return renamed
