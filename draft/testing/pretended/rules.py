"""What is known of torch's operators: which take tensors of two devices, and which make the host wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ANY_DEVICE = {"copy_", "_to_copy", "is_same_size", "_has_compatible_shallow_copy_type"}
_INDEXED = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
_NUMBERS = {"masked_fill", "masked_fill_", "fill", "fill_"}
_READ = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "unique_dim_consecutive", "bincount", "_linalg_check_errors",
}  # fmt: skip
_WORDS = {"_local_scalar_dense": "item"}


def mixed(func: Any, name: str, args: Sequence[Any], outside: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that are not on the device and would have to be.

    Args:
        func: An operator with tensors of the device among its arguments.
        name: Its name without the namespace.
        args: Its arguments by position.
        outside: Its tensors of other devices.

    Returns:
        Those that a GPU's operator refuses: all but single numbers of the CPU where operators work element by element,
        indices, and what a copy copies.
    """
    if not outside or name in _ANY_DEVICE:
        return []
    if name in _INDEXED:
        values = args[2] if len(args) > 2 else None
        return [tensor for tensor in outside if tensor is args[0] or (tensor is values and tensor.dim() > 0)]
    changed = args[0] if name.endswith("_") and isinstance(args[0], Tensor) else None
    numbers = torch.Tag.pointwise in func.tags or name in _NUMBERS or name.startswith("_foreach")
    return [
        tensor
        for tensor in outside
        if tensor is changed or tensor.dim() > 0 or not numbers or tensor.device.type != "cpu"
    ]


def reads(name: str, args: Sequence[Any], kind: type[Tensor]) -> str:
    """What the host reads of the device to run an operator: a word for it, or nothing.

    Args:
        name: The operator's name.
        args: Its arguments by position.
        kind: What tensors of the device are.

    Returns:
        The word; empty if it need not wait.
    """
    if name in _READ:
        return _WORDS.get(name, name)
    if name == "copy_" and not isinstance(args[0], kind):
        return "copy_ to cpu"
    if name == "repeat_interleave" and len(args) == 1:
        return name
    if name in _INDEXED and any(_mask(index) for index in args[1]):
        # A mask becomes indices, whose number the host must know, unless one number is put wherever it is true.
        single = name not in ("index", "_unsafe_index") and args[2].numel() == 1 and len(args[1]) == 1
        return "" if single else f"{name} with a mask"
    return ""


def copies(name: str, args: Sequence[Any], kind: type[Tensor], *, to_device: bool) -> list[str]:
    """What an operator copies from the host to the device, as words.

    Args:
        name: The operator's name.
        args: Its arguments by position.
        kind: What tensors of the device are.
        to_device: Whether its result is on the device.

    Returns:
        A word for each copy of more than a single number.
    """
    if name == "copy_" and isinstance(args[0], kind) and not isinstance(args[1], kind) and args[1].dim():
        return ["copy_"]
    if name == "_to_copy" and to_device and not isinstance(args[0], kind) and args[0].dim():
        return ["to(cuda)"]
    if name in _INDEXED and isinstance(args[0], kind):
        return [f"{name} from cpu" for index in args[1] if index is not None and not isinstance(index, kind)]
    return []


def _mask(index: Any) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
