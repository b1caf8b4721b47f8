"""Tensors as raw bytes and back.

Imports torch alone: an old torch next to a new numpy cannot convert, and safetensors, which would write the same bytes,
goes through numpy and is nothing that the environment of a reward must have.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    )
}  # fmt: skip
"""Name to dtype of what may travel."""

_ALIGNED = 64


def pack(tensors: Mapping[str, Tensor]) -> tuple[list[dict[str, Any]], bytes]:
    """Describe tensors and join their bytes.

    Args:
        tensors: Name to tensor, on any device.

    Returns:
        Name, dtype and shape of each for a header, and the body.

    Raises:
        TypeError: A tensor's dtype is none of `DTYPES`.
    """
    described, parts = [], []
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        size = plain.numel() * plain.element_size()
        described.append({"name": name, "dtype": _name(plain), "shape": list(plain.shape)})
        parts += [ctypes.string_at(plain.data_ptr(), size) if size else b"", bytes(-size % _ALIGNED)]
    return described, b"".join(parts)


def unpack(described: Sequence[Mapping[str, Any]], body: bytearray) -> dict[str, Tensor]:
    """Make the tensors of a message again.

    Args:
        described: As `pack` returns it.
        body: Likewise.

    Returns:
        Name to tensor on the CPU, in memory of torch's own, so that the same numbers give the same results.
    """
    tensors, offset = {}, 0
    for entry in described:
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        tensor = torch.empty(shape, dtype=dtype)
        if count := tensor.numel():
            tensor.copy_(torch.frombuffer(body, dtype=dtype, count=count, offset=offset).reshape(shape))
        tensors[entry["name"]] = tensor
        size = count * tensor.element_size()
        offset += size + -size % _ALIGNED
    return tensors


def _name(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"a tensor of {name} cannot leave its process, only {', '.join(DTYPES)}")
    return name
