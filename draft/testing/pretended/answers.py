"""What torch reports of its devices while one is pretended, and what other libraries remember of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from draft.testing.pretended.counts import asking_line
from draft.testing.pretended.pretence import Pretence
from draft.testing.pretended.tensor import DEVICE, NotPretended

_MEMORY = 80 * 2**30
_REMEMBERING = (
    "accelerate.utils.imports", "diffusers.utils.import_utils", "peft.import_utils", "transformers.utils.import_utils",
)  # fmt: skip
"""Modules of cached answers, those about devices among them."""
_GROUPS = "_group_tensors_by_device_and_dtype"
_NOTHING: Any = object()


class Stream:
    """The device's one stream, on which nothing ever waits.

    Args:
        pretence: The device.
    """

    device = DEVICE
    cuda_stream = 0

    def __init__(self, pretence: Pretence) -> None:
        self.pretence = pretence

    def synchronize(self) -> None:
        """Wait, which a GPU would."""
        self.pretence.read("synchronize")

    def wait_stream(self, stream: Any) -> None:
        """Do nothing: there is one stream."""

    def query(self) -> bool:
        """Whether everything is done, which it always is."""
        return True

    def is_capturing(self) -> bool:
        """Whether a graph is being captured, which it never is."""
        return False


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute inside the block.

    Args:
        owner: A module or class.
        name: The attribute.
        value: What it is to be.

    Yields:
        Nothing.
    """
    before = vars(owner).get(name, _NOTHING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _NOTHING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def answering(pretence: Pretence) -> Iterator[None]:
    """Let torch and who asked it before report the device inside the block, and forget it afterwards.

    Args:
        pretence: The device.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.callback(_forget)
        for module, answers in _answers(pretence).items():
            for name, answer in answers.items():
                if hasattr(module, name):  # some are newer than the oldest torch that Draft runs with
                    stack.enter_context(replaced(module, name, answer))
        stack.enter_context(replaced(torch._C, _GROUPS, _grouping()))
        # Else `Module.to` would put the data of a tensor of one device into one of the other.
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, _overwrites())
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        _forget()
        with _accelerate_apart():
            yield


def _answers(pretence: Pretence) -> Mapping[Any, Mapping[str, Callable[..., Any]]]:
    def always(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    def start(*args: Any, **kwargs: Any) -> None:
        raise NotPretended(f"the pretended device does not have what was asked of torch.cuda at {asking_line()}")

    memory = {
        "empty_cache": always(None),
        "max_memory_allocated": always(0),
        "max_memory_reserved": always(0),
        "memory_allocated": always(0),
        "memory_reserved": always(0),
        "reset_peak_memory_stats": always(None),
        "synchronize": lambda *args, **kwargs: pretence.read("synchronize"),
    }
    stream = Stream(pretence)
    properties = SimpleNamespace(
        name="pretended", major=9, minor=0, total_memory=_MEMORY, multi_processor_count=1, is_integrated=0
    )
    return {
        torch.cuda: memory
        | {
            "_exchange_device": always(0),
            "_lazy_init": start,
            "_maybe_exchange_device": always(0),
            "current_device": always(0),
            "current_stream": always(stream),
            "default_stream": always(stream),
            "device_count": always(1),
            "get_device_capability": always((9, 0)),
            "get_device_name": always("pretended"),
            "get_device_properties": always(properties),
            "get_rng_state": always(torch.zeros(0, dtype=torch.uint8)),
            "get_rng_state_all": always([]),
            "is_available": always(True),
            "is_bf16_supported": always(True),
            "is_current_stream_capturing": always(False),
            "manual_seed": always(None),
            "manual_seed_all": always(None),
            "mem_get_info": always((_MEMORY, _MEMORY)),
            "set_device": always(None),
            "set_rng_state": always(None),
            "set_rng_state_all": always(None),
        },
        torch.accelerator: memory
        | {
            "current_accelerator": always(torch.device(DEVICE.type)),
            "current_device_idx": always(0),
            "current_device_index": always(0),
            "current_stream": always(stream),
            "device_count": always(1),
            "get_memory_info": always((_MEMORY, _MEMORY)),
            "is_available": always(True),
            "set_device_idx": always(None),
            "set_device_index": always(None),
        },
    }


def _grouping() -> Callable[..., Any]:
    """How optimisers and clipping sort tensors by device, which is done in C++."""
    plain = getattr(torch._C, _GROUPS)

    def group(*args: Any) -> Any:
        grouped = plain(*args)
        return {(lists[0][0].device, dtype): (lists, indices) for (_, dtype), (lists, indices) in grouped.items()}

    return group


def _overwrites() -> bool:
    return torch.__future__.get_overwrite_module_params_on_conversion()


def _forget() -> None:
    """Have the libraries that cache what a machine has look again."""
    for name in _REMEMBERING:
        for cached in list(vars(sys.modules.get(name, SimpleNamespace())).values()):
            if callable(clear := getattr(cached, "cache_clear", None)):
                clear()


@contextmanager
def _accelerate_apart() -> Iterator[None]:
    """Give accelerate, which settles on one device for the process, another memory inside the block."""
    saved = [dict(state) for state in _accelerate_states()]
    for state in _accelerate_states():
        state.clear()
    try:
        yield
    finally:
        # It may have been imported in between, and then has nothing to go back to.
        states = _accelerate_states()
        for state, before in zip(states, saved or [{}] * len(states), strict=True):
            state.clear()
            state.update(before)


def _accelerate_states() -> list[dict[str, Any]]:
    module: Any = sys.modules.get("accelerate.state")
    return [] if module is None else [module.PartialState._shared_state, module.AcceleratorState._shared_state]
