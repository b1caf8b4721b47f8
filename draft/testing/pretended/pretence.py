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

    def put(self, host: Tensor) -> DeviceTensor:
        """Say of a tensor of the CPU, which nobody else holds, that it is on the device."""
        return DeviceTensor(host, self)

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
        for tensor in tensors_among(args, kwargs):
            inside.append(tensor) if isinstance(tensor, DeviceTensor) else outside.append(tensor)
        to_device = self._belongs(kwargs.get("device"), inside)
        name = func._schema.name.partition("::")[2]
        self._check(func, name, args, kwargs, inside, outside, to_device=to_device)
        self._count(func, name, args, kwargs, inside, to_device=to_device)
        host_args = [_replaced(value, DeviceTensor, _host) for value in args]
        host_kwargs = {key: _replaced(value, DeviceTensor, _host) for key, value in kwargs.items()}
        if host_kwargs.get("device") is not None and to_device:
            host_kwargs["device"] = CPU
        if host_kwargs.get("pin_memory"):
            host_kwargs["pin_memory"] = False
        out = func(*host_args, **host_kwargs)
        if not to_device:
            return _same(args, out)
        out = _replaced(out, Tensor, lambda result: self._put(result, name))
        return return_and_correct_aliasing(func, args, kwargs, out) if inside else out

    def _put(self, result: Tensor, name: str) -> Tensor:
        if result.dtype == torch.float64:
            self.counts.doubles[At(name, asking_line())] += 1
        return self.put(result)

    def _belongs(self, device: Any, inside: Sequence[DeviceTensor]) -> bool:
        """Whether what an operator makes is on the device."""
        if device is None:
            return bool(inside)
        if on_device(device):
            return True
        # C++ names the device of the tensors that it sees, and sees the CPU.
        return device.type == "cpu" and (self.call.beside or (self.call.autograd and bool(inside)))

    def _check(
        self,
        func: Any,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        inside: Sequence[DeviceTensor],
        outside: Sequence[Tensor],
        *,
        to_device: bool,
    ) -> None:
        if to_device and kwargs.get("generator") is not None:
            if kwargs["generator"].device.type != "cpu":
                raise NotPretended(f"the pretended device has no generators at {asking_line()}")
            raise RuntimeError(f"expected a 'cuda' device type for generator but found 'cpu' at {asking_line()}")
        strange = [tensor for tensor in outside if not is_placeless(tensor)]
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
        to_device: bool,
    ) -> None:
        if not getattr(func, "is_view", False):
            self.counts.operators[name] += 1
        if inside and (what := reads(name, args, DeviceTensor)):
            self.read(what)
        elif inside and not to_device and name == "_to_copy" and kwargs["device"].type == "cpu":
            self.read("to(cpu)")
        for what in copies(name, args, DeviceTensor, to_device=to_device):
            self.counts.copies[At(what, asking_line())] += 1


def _replaced(value: Any, kind: type[Tensor], change: Callable[[Any], Any]) -> Any:
    """An argument or a result with each tensor of a kind changed, in lists too."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple) and any(isinstance(item, kind) for item in value):
        return type(value)([change(item) if isinstance(item, kind) else item for item in value])
    return value


def _host(tensor: DeviceTensor) -> Tensor:
    return tensor.host


def _same(args: Sequence[Any], out: Any) -> Any:
    """What an operator gives on the CPU; where it changed an argument, that argument itself."""
    for argument in args:
        if isinstance(argument, DeviceTensor) and out is argument.host:
            return argument
    return out


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
