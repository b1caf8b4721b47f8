"""A tensor of the pretended device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from draft.testing.pretended.counts import asking_line

if TYPE_CHECKING:
    from draft.testing.pretended.pretence import Pretence

DEVICE: Final = torch.device("cuda", 0)
CPU: Final = torch.device("cpu")


class NotPretended(RuntimeError):
    """Something was asked of the device that a pretended one does not have."""


class DeviceTensor(Tensor):
    """A tensor that says it is on the device; the values are in `host`, on the CPU and without gradient."""

    host: Tensor
    pretence: Pretence
    # Torch's functions take it as they take any tensor; what is to be known of them is seen by `Calls`.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, host: Tensor, pretence: Pretence) -> DeviceTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=CPU,
        )
        wrapper.host, wrapper.pretence = host, pretence
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator where no mode has seen it: in another thread, or when the device is gone."""
        ours = (tensor for tensor in tensors_among(args, kwargs or {}) if isinstance(tensor, DeviceTensor))
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
        self.host = value.host

    @property
    def grad(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The gradient; what is put there must be on the device, too."""
        return Tensor.grad.__get__(self)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None and not isinstance(value, DeviceTensor):
            raise RuntimeError(f"a gradient of another device was given to a tensor on cuda:0 at {asking_line()}")
        Tensor.grad.__set__(self, value)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]

    def get_device(self) -> int:
        """The device's number, 0."""
        return 0

    def data_ptr(self) -> int:
        """Where the values are, by which libraries recognise tensors that share them."""
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """What holds the values."""
        return self.host.untyped_storage()

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
        return self.host.tolist()

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else object.__format__(self, spec)

    def __repr__(self, **options: Any) -> str:
        return f"{repr(self.host)[:-1]}, device='{DEVICE}')"

    def __deepcopy__(self, memo: Any) -> DeviceTensor:
        return self._like(self.host.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save as a tensor of the CPU, which is what whoever loads it will ask for."""
        self.pretence.read("saved")
        plain: Tensor = self.host
        if getattr(self, "_is_param", False):
            plain = torch.nn.Parameter(plain, requires_grad=self.requires_grad)
        return plain.__reduce_ex__(protocol)

    def _like(self, host: Tensor) -> DeviceTensor:
        copy = DeviceTensor(host, self.pretence)
        copy.requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True  # pyright: ignore[reportAttributeAccessIssue]
        return copy


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
    tensors = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += [item for item in value if isinstance(item, Tensor)]
    return tensors


def _no_array(what: str) -> TypeError:
    return TypeError(
        f"can't convert cuda:0 device type tensor to {what} at {asking_line()}; use Tensor.cpu() to copy it first"
    )
