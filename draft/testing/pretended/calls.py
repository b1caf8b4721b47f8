"""Seeing what Python asks of torch: which function it calls, and which operators follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

from draft.testing.pretended.pretence import Call, Pretence
from draft.testing.pretended.tensor import DeviceTensor, is_placeless, mark_placeless, on_device, tensors_among

_FAKE = torch._C._TorchDispatchModeKey.FAKE  # pyright: ignore[reportAttributeAccessIssue]

_APART, _BESIDE = Call(), Call(beside=True)


def no_fake_mode() -> None:
    """Refuse to begin where the place of a mode that makes torch leave CUDA alone is taken.

    Raises:
        RuntimeError: It is.
    """
    if torch._C._get_dispatch_mode(_FAKE) is not None:  # pyright: ignore[reportAttributeAccessIssue]
        raise RuntimeError("a pretended accelerator or torch's FakeTensorMode is there already")


class Factories(TorchDispatchMode):
    """Sees every operator, those that have no tensor of the device but are to make one among them.

    Torch starts CUDA where Python names such a device, except under a mode of this key.

    Args:
        pretence: The device.
    """

    def __init__(self, pretence: Pretence) -> None:
        super().__init__(_dispatch_key=None)
        self._mode_key = _FAKE
        self.pretence = pretence

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on the device if it has to do with it, else as it is."""
        options = kwargs or {}
        device, call, tensors = options.get("device"), self.pretence.call, list(tensors_among(args, options))
        if on_device(device) or (call.beside and device is not None):
            return self.pretence.run(func, args, options)
        if any(isinstance(tensor, DeviceTensor) for tensor in tensors):
            return self.pretence.run(func, args, options)
        if options.get("pin_memory"):
            options = {**options, "pin_memory": False}
        out = func(*args, **options)
        created = call.autograd and device is not None
        if isinstance(out, Tensor) and (created or (tensors and all(map(is_placeless, tensors)))):
            mark_placeless(out)
        return out


class Calls(TorchFunctionMode):
    """Notes which function of torch Python has called, so that what C++ makes in passing gets its place.

    A function of tensors on the device makes more of them: `quantile` a tensor of its ranks, `one_hot` its zeros. C++
    makes them where it believes its arguments to be, on the CPU.

    Args:
        pretence: The device.
    """

    def __init__(self, pretence: Pretence) -> None:
        super().__init__()
        self.pretence = pretence
        self.constructors = _device_constructors()
        self.instead: dict[Any, Callable[..., Any]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and remember it while it runs."""
        options = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":
            return func(*args, **options)
        beside = (
            func not in self.constructors
            and options.get("device") is None
            and any(isinstance(tensor, DeviceTensor) for tensor in tensors_among(args, options))
        )
        before, self.pretence.call = self.pretence.call, _BESIDE if beside else _APART
        try:
            return (self.instead.get(func) or func)(*args, **options)
        finally:
            self.pretence.call = before

    def autograd(self, engine: Callable[..., Any]) -> Callable[..., Any]:
        """Torch's backward pass, with Python inside it seen as elsewhere: torch leaves this mode before it begins."""

        def backward(*args: Any, **kwargs: Any) -> Any:
            before, self.pretence.call = self.pretence.call, Call(autograd=True)
            try:
                with self:
                    return engine(*args, **kwargs)
            finally:
                self.pretence.call = before

        return backward
