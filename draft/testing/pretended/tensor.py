"""A tensor of the pretended device, and what runs operators on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from draft.testing.pretended.counts import At, Counts, asking_line
from draft.testing.pretended.rules import copies, mixed, reads

DEVICE: Final = torch.device("cuda", 0)
CPU: Final = torch.device("cpu")


class DeviceMismatch(RuntimeError):
    """An operator got tensors of two devices."""


class NotPretended(RuntimeError):
    """Something was asked of the device that a pretended one does not have."""


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
        if name == "record_stream":
            return None
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


class DeviceTensor(Tensor):
    """A tensor that says it is on the device; the values are in `held`, on the CPU and without gradient."""

    held: Tensor
    pretence: Pretence
    # Torch's functions take it as they take any tensor; what is to be known of them is seen by `Calls`.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, held: Tensor, pretence: Pretence) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CPU,
        )
        made.held, made.pretence = held, pretence
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator where no mode has seen it: in another thread, or when the device is gone."""
        ours = (each for each in tensors_among(args, kwargs or {}) if isinstance(each, DeviceTensor))
        return next(ours).pretence.run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`cuda:0`."""
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True."""
        return True

    @property
    def is_cpu(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """False."""
        return False

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The tensor without its gradient; what is put there must be on the device, too."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, DeviceTensor):
            raise RuntimeError(f"data of another device was put into a tensor on cuda:0 at {asking_line()}")
        Tensor.data.__set__(self, value)  # pyright: ignore[reportAttributeAccessIssue]
        self.held = value.held

    def get_device(self) -> int:
        """The device's number, 0."""
        return 0

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, as a tensor on a GPU does."""
        raise _no_array("numpy")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, as a tensor on a GPU does."""
        raise _no_array("numpy")

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a pretended device has no memory that others could look into."""
        raise NotPretended(f"the pretended device has no dlpack at {asking_line()}")

    def tolist(self) -> Any:
        """The values, which the host reads at once."""
        self.pretence.read("tolist")
        return self.held.tolist()

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else object.__format__(self, spec)

    def __repr__(self, **options: Any) -> str:
        return f"{repr(self.held)[:-1]}, device='{DEVICE}')"

    def __deepcopy__(self, memo: Any) -> DeviceTensor:
        return self._like(self.held.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save as a tensor of the CPU, which is what whoever loads it will ask for."""
        self.pretence.read("saved")
        plain: Tensor = self.held
        if getattr(self, "_is_param", False):
            plain = torch.nn.Parameter(plain, requires_grad=self.requires_grad)
        return plain.__reduce_ex__(protocol)

    def _like(self, held: Tensor) -> DeviceTensor:
        made = DeviceTensor(held, self.pretence).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            made._is_param = True  # pyright: ignore[reportAttributeAccessIssue]
        return made


def on_device(device: Any) -> bool:
    """Whether a device is the pretended one.

    Args:
        device: A device, its name or its number; None: none.

    Returns:
        True for `cuda` and `cuda:0`.

    Raises:
        RuntimeError: It is another GPU.
    """
    if device is None:
        return False
    chosen = torch.device(device)
    if chosen.type != DEVICE.type:
        return False
    if chosen.index not in (None, DEVICE.index):
        raise RuntimeError(f"invalid device ordinal: {chosen} (there is one pretended device, {DEVICE})")
    return True


def mark_placeless(tensor: Tensor) -> None:
    """Note of a tensor of the CPU that it may be used on either device.

    Autograd makes zeros in C++, which cannot tell the devices apart, and hands them on as gradients.

    Args:
        tensor: The tensor.
    """
    tensor._draft_placeless = True  # pyright: ignore[reportAttributeAccessIssue]


def is_placeless(tensor: Tensor) -> bool:
    """Whether a tensor of the CPU may be used on either device; see `mark_placeless`."""
    return hasattr(tensor, "_draft_placeless")


def tensors_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among arguments, which are in lists or tuples at most.

    Args:
        args: Arguments by position.
        kwargs: The others.

    Returns:
        Each tensor.
    """
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [each for each in value if isinstance(each, Tensor)]
    return found


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


def _no_array(what: str) -> TypeError:
    return TypeError(
        f"can't convert cuda:0 device type tensor to {what} at {asking_line()}; use Tensor.cpu() to copy it first"
    )
