"""The pretended device while it is there: what runs operators on it, and sees to it that they are what it could run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from draft.testing.pretended.counts import At, Counts, asking_line
from draft.testing.pretended.rules import copies, mixed, reads
from draft.testing.pretended.tensor import (
    CPU,
    DEVICE,
    DeviceTensor,
    NotPretended,
    is_placeless,
    on_device,
    tensors_among,
)


class DeviceMismatch(RuntimeError):
    """An operator got tensors of two devices."""


@dataclass(frozen=True)
class Call:
    """The function of torch that Python has called and that is running.

    Args:
        beside: Whether what it makes in passing is on the device, as its arguments are.
        autograd: Whether it is autograd, which calls operators from C++ without naming the device.
    """

    beside: bool = False
    autograd: bool = False


class Pretence:
    """The device while it is there.

    Args:
        counts: What is counted on it.
    """

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.call = Call()
        self.open = True

    def close(self) -> None:
        """Take the device away."""
        self.open = False

    def put(self, held: Tensor) -> DeviceTensor:
        """Say of a tensor of the CPU, which nobody else holds, that it is on the device."""
        return DeviceTensor(held, self)

    def read(self, what: str) -> None:
        """Count a value that the host reads."""
        self.counts.reads[At(what, asking_line())] += 1

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator that has to do with the device.

        Args:
            func: The operator.
            args: Its arguments, tensors of both devices among them.
            kwargs: Its other arguments.

        Returns:
            What it gives, on the device it belongs to.

        Raises:
            DeviceMismatch: It cannot take tensors of two devices.
            RuntimeError: A number of a device that is not there, or a generator of the CPU.
        """
        if not self.open:
            raise RuntimeError("this tensor was on a pretended accelerator, which is not there any more")
        if func is torch.ops.prim.device.default:
            return DEVICE
        inside: list[DeviceTensor] = []
        outside: list[Tensor] = []
        for each in tensors_among(args, kwargs):
            inside.append(each) if isinstance(each, DeviceTensor) else outside.append(each)
        here = self._belongs(kwargs.get("device"), inside)
        name = func._schema.name.partition("::")[2]
        self._check(func, name, args, kwargs, inside, outside, here=here)
        self._count(func, name, args, kwargs, inside, here=here)
        held_args = [_replaced(each, DeviceTensor, _held) for each in args]
        held_kwargs = {key: _replaced(each, DeviceTensor, _held) for key, each in kwargs.items()}
        if held_kwargs.get("device") is not None and here:
            held_kwargs["device"] = CPU
        if held_kwargs.get("pin_memory"):
            held_kwargs["pin_memory"] = False
        out = func(*held_args, **held_kwargs)
        if not here:
            return _same(args, out)
        out = _replaced(out, Tensor, lambda made: self._put(made, name))
        return return_and_correct_aliasing(func, args, kwargs, out) if inside else out

    def _put(self, made: Tensor, name: str) -> Tensor:
        if made.dtype == torch.float64:
            self.counts.doubles[At(name, asking_line())] += 1
        return self.put(made)

    def _belongs(self, asked: Any, inside: Sequence[DeviceTensor]) -> bool:
        """Whether what an operator makes is on the device."""
        if asked is None:
            return bool(inside)
        if on_device(asked):
            return True
        # C++ names the device of the tensors that it sees, and sees the CPU.
        return asked.type == "cpu" and (self.call.beside or (self.call.autograd and bool(inside)))

    def _check(
        self,
        func: Any,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        inside: Sequence[DeviceTensor],
        outside: Sequence[Tensor],
        *,
        here: bool,
    ) -> None:
        if here and kwargs.get("generator") is not None:
            if kwargs["generator"].device.type != "cpu":
                raise NotPretended(f"the pretended device has no generators at {asking_line()}")
            raise RuntimeError(f"expected a 'cuda' device type for generator but found 'cpu' at {asking_line()}")
        strange = [each for each in outside if not is_placeless(each)]
        if not inside or self.call.autograd or not (bad := mixed(func, name, args, strange)):
            return
        raise DeviceMismatch(
            f"{name}: expected all tensors to be on the same device, but found cuda:0 {_shapes(inside)} and "
            f"{bad[0].device} {_shapes(bad)} at {asking_line()}"
        )

    def _count(
        self,
        func: Any,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        inside: Sequence[DeviceTensor],
        *,
        here: bool,
    ) -> None:
        if not getattr(func, "is_view", False):
            self.counts.operators[name] += 1
        if inside and (what := reads(name, args, DeviceTensor)):
            self.read(what)
        elif inside and not here and name == "_to_copy" and kwargs["device"].type == "cpu":
            self.read("to(cpu)")
        for what in copies(name, args, DeviceTensor, here=here):
            self.counts.copies[At(what, asking_line())] += 1


def _replaced(value: Any, kind: type[Tensor], change: Callable[[Any], Any]) -> Any:
    """An argument or a result with each tensor of a kind changed, in lists too."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple) and any(isinstance(each, kind) for each in value):
        return type(value)([change(each) if isinstance(each, kind) else each for each in value])
    return value


def _held(tensor: DeviceTensor) -> Tensor:
    return tensor.held


def _same(args: Sequence[Any], out: Any) -> Any:
    """What an operator gives on the CPU; where it changed an argument, that argument itself."""
    for each in args:
        if isinstance(each, DeviceTensor) and out is each.held:
            return each
    return out


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(each.shape)) for each in tensors)
