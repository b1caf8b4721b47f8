"""Moves between the pretended device and the CPU, with gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from draft.testing.pretended.answers import replaced
from draft.testing.pretended.calls import Calls
from draft.testing.pretended.counts import At, asking_line
from draft.testing.pretended.pretence import Pretence
from draft.testing.pretended.tensor import CPU, DEVICE, DeviceTensor, NotPretended, on_device

_PLAIN_TO = Tensor.to


class ToHost(torch.autograd.Function):
    """Read a tensor of the device; its gradient goes back there."""

    @staticmethod
    def forward(ctx: Any, x: DeviceTensor, dtype: torch.dtype | None) -> Tensor:
        """Copy to the CPU."""
        ctx.dtype = x.dtype
        x.pretence.read("to(cpu)")
        return _PLAIN_TO(x.host, dtype or x.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        """Copy the gradient to the device."""
        return slopes[0].to(DEVICE, ctx.dtype), None


class ToDevice(torch.autograd.Function):
    """Copy a tensor to the device; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype | None, pretence: Pretence) -> Tensor:
        """Copy to the device."""
        ctx.dtype = x.dtype
        if x.dim():
            pretence.counts.copies[At("to(cuda)", asking_line())] += 1
        return pretence.put(_PLAIN_TO(x.detach(), CPU, dtype or x.dtype, copy=True))

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        """Copy the gradient to the CPU."""
        return slopes[0].to(CPU, ctx.dtype), None, None


@dataclass(frozen=True)
class Target:
    """Where a tensor is to go.

    Args:
        device: The device; None: it stays.
        dtype: The dtype; None: its own.
        options: `copy`, `non_blocking` and `memory_format`, as they were given.
    """

    device: torch.device | None
    dtype: torch.dtype | None
    options: Mapping[str, Any]


def read_target(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Target:
    """The arguments of `Tensor.to`, in each of its three forms.

    Args:
        args: Those by position.
        kwargs: The others.

    Returns:
        What they ask for.
    """
    device = dtype = None
    for value in [*args, *(kwargs.get(name) for name in ("device", "dtype", "other"))]:
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | torch.device) or (isinstance(value, int) and not isinstance(value, bool)):
            device = torch.device("cuda", value) if isinstance(value, int) else torch.device(value)
    options = dict(zip(("non_blocking", "copy"), (value for value in args if isinstance(value, bool)), strict=False))
    options |= {name: value for name, value in kwargs.items() if name not in ("device", "dtype", "other")}
    return Target(device, dtype, options)


def move(x: Tensor, target: Target, pretence: Pretence) -> Tensor:
    """Do what `Tensor.to` does, also from and to the device.

    Args:
        x: A tensor of any device.
        target: Where to.
        pretence: The device.

    Returns:
        The tensor there; `x` itself if it is so already and no copy is asked for.
    """
    from_device = isinstance(x, DeviceTensor)
    to_device = from_device if target.device is None else on_device(target.device)
    if from_device and target.device is not None and target.device.type == "cpu":
        return ToHost.apply(x, target.dtype)
    if to_device and not from_device:
        return ToDevice.apply(x, target.dtype, pretence)
    if to_device:
        return _PLAIN_TO(x, target.dtype or x.dtype, **target.options)
    return _PLAIN_TO(x, target.device or x.device, target.dtype or x.dtype, **target.options)


@contextmanager
def moving(pretence: Pretence, calls: Calls) -> Iterator[None]:
    """Let torch's ways to move a tensor, and to make one from numbers, reach the device inside the block.

    Args:
        pretence: The device.
        calls: What sees functions being called.

    Yields:
        Nothing.
    """

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return move(self, read_target(args, kwargs), pretence)

    def cpu(self: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return move(self, Target(CPU, None, {"memory_format": memory_format}), pretence)

    def cuda(self: Tensor, device: Any = None, non_blocking: bool = False, **options: Any) -> Tensor:
        chosen = DEVICE if device is None else torch.device(device)
        return move(self, Target(chosen, None, {"non_blocking": non_blocking, **options}), pretence)

    def type_as(self: Tensor, other: Tensor) -> Tensor:
        return move(self, Target(other.device, other.dtype, {}), pretence)

    def new_tensor(self: Tensor, data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        return torch.tensor(
            data, dtype=dtype or self.dtype, device=self.device if device is None else device, **options
        )

    def pin_memory(self: Tensor, device: Any = None) -> Tensor:
        if isinstance(self, DeviceTensor):
            raise RuntimeError(f"cannot pin a tensor on cuda:0, only those of the CPU, at {asking_line()}")
        return self.clone()

    def tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **options: Any) -> Tensor:
        source = data.detach().clone() if isinstance(data, Tensor) else torch.tensor(_numbers(data), **options)
        target = Target(None if device is None else torch.device(device), options.get("dtype"), {})
        return move(source, target, pretence).requires_grad_(requires_grad)

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        source = data if isinstance(data, Tensor) else torch.as_tensor(_numbers(data))
        return move(source, Target(None if device is None else torch.device(device), dtype, {}), pretence)

    def asarray(
        data: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None, requires_grad: bool = False
    ) -> Tensor:
        source = data if isinstance(data, Tensor) else torch.asarray(_numbers(data), dtype=dtype, copy=copy)
        target = Target(None if device is None else torch.device(device), dtype, {"copy": bool(copy)})
        return move(source, target, pretence).requires_grad_(requires_grad)

    def load(f: Any, map_location: Any = None, *args: Any, **options: Any) -> Any:
        to_device = isinstance(map_location, str | int | torch.device) and on_device(map_location)
        place: Any = CPU if to_device else map_location
        loaded = plain_load(f, place, *args, **options)
        return tree_map_only((Tensor, torch.nn.Module), lambda item: item.to(DEVICE), loaded) if to_device else loaded

    def load_script(f: Any, map_location: Any = None, *args: Any, **options: Any) -> Any:
        if on_device(map_location):
            raise _no_script()
        return plain_load_script(f, map_location, *args, **options)

    def move_script(self: Any, *args: Any, **kwargs: Any) -> Any:
        if on_device(read_target(args, kwargs).device):
            raise _no_script()
        return torch.nn.Module.to(self, *args, **kwargs)

    plain_load, plain_load_script = torch.load, torch.jit.load
    with ExitStack() as stack:
        stack.enter_context(replaced(torch, "load", load))
        stack.enter_context(replaced(torch.jit, "load", load_script))
        stack.enter_context(replaced(torch.jit.ScriptModule, "to", move_script))
        for function in (to, cpu, cuda, type_as, new_tensor, pin_memory):
            stack.enter_context(replaced(Tensor, function.__name__, function))
        stack.enter_context(replaced(torch.autograd, "_engine_run_backward", calls.autograd(_engine())))
        calls.instead |= {torch.tensor: tensor, torch.as_tensor: as_tensor, torch.asarray: asarray}
        yield


def _numbers(data: Any) -> Any:
    """Numbers in lists, read from the device where they are tensors of it."""
    if isinstance(data, list | tuple):
        return [_numbers(item) for item in data]
    return data.tolist() if isinstance(data, DeviceTensor) else data


def _no_script() -> NotPretended:
    return NotPretended(f"the pretended device takes no modules of TorchScript at {asking_line()}")


def _engine() -> Callable[..., Any]:
    return torch.autograd._engine_run_backward  # pyright: ignore[reportPrivateImportUsage]
