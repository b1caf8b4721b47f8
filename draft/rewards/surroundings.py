"""What a plugin's code may change for everybody else in this process: recorded before a call and put back after it.

No torch is imported here: a plugin may be the first to do so.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RANDOM = "global random generator"
"""How the name of each generator's state ends."""


@dataclass(frozen=True)
class Setting:
    """One thing that all code in this process shares.

    Args:
        name: What it is called in a warning.
        get: Its value now.
        put: Makes a value of `get` its value again.
        fresh: Its value before anybody has changed it, where its library may be imported by the call itself; None:
            it then counts as unchanged.
        shown: Whether its values can be read by a person.
    """

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    fresh: Any = None
    shown: bool = True


@dataclass(frozen=True)
class Surroundings:
    """The state of what is shared, at one moment.

    Args:
        device: The device whose random generator counts besides the CPU's; None: none.
        values: Name of a setting to its value.
    """

    device: torch.device | None
    values: dict[str, Any]

    def restored(self, *, generators: bool = True) -> list[str]:
        """Put back what differs from these values now.

        Args:
            generators: Whether random generators count, too.

        Returns:
            What was different, in words.
        """
        changed = []
        for setting in _settings(self.device):
            before = self.values.get(setting.name, setting.fresh)
            if before is None or (setting.name.endswith(RANDOM) and not generators):
                continue
            now = setting.get()
            if now == before:
                continue
            setting.put(before)
            changed.append(f"{setting.name} ({now}, was {before})" if setting.shown else setting.name)
        return changed


def surroundings(device: torch.device | None = None) -> Surroundings:
    """Record what is shared; about a tenth of a millisecond, and nothing is read from a device.

    Args:
        device: The device whose random generator counts besides the CPU's; None: none.

    Returns:
        The state.
    """
    return Surroundings(device, {setting.name: setting.get() for setting in _settings(device)})


@contextmanager
def without_drawing() -> Iterator[None]:
    """Put the global random generators of the CPU back after the block.

    Yields:
        Nothing.
    """
    generators = [setting for setting in _settings(None) if setting.name.endswith(RANDOM)]
    states = [setting.get() for setting in generators]
    try:
        yield
    finally:
        for setting, state in zip(generators, states, strict=True):
            setting.put(state)


def random_states(device: torch.device | None = None) -> dict[str, Any]:
    """The states of the global random generators, by the library's name.

    Args:
        device: The device whose generator counts besides the CPU's; None: none.

    Returns:
        Plain values that can be compared.
    """
    generators = (setting for setting in _settings(device) if setting.name.endswith(RANDOM))
    return {setting.name.partition("'s ")[0]: setting.get() for setting in generators}


def _settings(device: torch.device | None) -> Iterator[Setting]:
    yield Setting("the current folder", _folder, os.chdir)
    yield Setting(f"random's {RANDOM}", random.getstate, random.setstate, shown=False)
    if threading.current_thread() is threading.main_thread():  # no other thread may put a handler back
        for number in (signal.SIGINT, signal.SIGTERM):
            yield Setting(
                f"the handler of {number.name}",
                lambda number=number: signal.getsignal(number),
                lambda handler, number=number: signal.signal(number, handler),
                shown=False,
            )
    if (numpy := sys.modules.get("numpy")) is not None and hasattr(numpy, "random"):
        yield Setting(
            f"numpy's {RANDOM}",
            lambda: _numpy_state(numpy),
            lambda state: numpy.random.set_state((state[0], numpy.frombuffer(state[1], numpy.uint32), *state[2:])),
            shown=False,
        )
        yield Setting("numpy's handling of errors", numpy.geterr, lambda errors: numpy.seterr(**errors), shown=False)
    torch = sys.modules.get("torch")
    # A module that is being imported by a thread of somebody else has no functions yet.
    if torch is not None and hasattr(torch, "get_default_device"):
        yield from _torch_settings(torch, device)


def _set_default_device(torch: Any, place: torch.device) -> None:
    torch.set_default_device(None if place.type == "cpu" else place)
    try:
        torch.get_default_device()
    except AttributeError:  # torch 2.6 cannot be asked after None, and asks itself in many places
        torch.set_default_device(place)


def _torch_settings(torch: Any, device: torch.device | None) -> Iterator[Setting]:
    cudnn = torch.backends.cudnn
    yield Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype, torch.float32)
    yield Setting(
        "torch's default device",
        torch.get_default_device,
        lambda place: _set_default_device(torch, place),
        torch.device("cpu"),
    )
    yield Setting("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled, True)
    yield Setting("torch's anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False)
    yield Setting(
        "torch's deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda mode: torch.use_deterministic_algorithms(mode[0], warn_only=mode[1]),
        (False, False),
    )
    yield Setting(
        "torch's precision of matrix products",
        lambda: _precision(torch),
        torch.set_float32_matmul_precision,
        "highest",
    )
    for name, default in (("deterministic", False), ("benchmark", False)):
        yield Setting(
            f"cuDNN's flag {name!r}",
            lambda name=name: getattr(cudnn, name),
            lambda value, name=name: setattr(cudnn, name, value),
            default,
        )
    yield Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads)
    yield Setting(
        f"torch's {RANDOM}",
        lambda: _bytes(torch.get_rng_state()),
        lambda state: torch.set_rng_state(_state(torch, state)),
        shown=False,
    )
    module = None if device is None or device.type == "cpu" else torch.get_device_module(device)
    # An accelerator's generator exists once the accelerator has been started.
    if module is not None and hasattr(module, "get_rng_state") and getattr(module, "is_initialized", lambda: True)():
        of = () if module.__name__ == "torch.mps" else (device,)  # there is one such device, and it takes no name
        yield Setting(
            f"{module.__name__.rpartition('.')[2]}'s {RANDOM}",
            lambda: _bytes(module.get_rng_state(*of)),
            lambda state: module.set_rng_state(_state(torch, state), *of),
            shown=False,
        )


def _folder() -> str | None:
    with suppress(OSError):  # somebody has removed it
        return os.getcwd()
    return None


_known: list[tuple[bytes, Any]] = []
"""The newest state of numpy's generator, by its bytes: a state that nobody has changed need not be read again."""


def _numpy_state(numpy: Any) -> Any:
    held = _numpy_bytes(numpy)
    if held and _known and _known[0][0] == held:
        return _known[0][1]
    state = numpy.random.get_state()
    if not isinstance(state, tuple):  # somebody's program has replaced the generator by one of another kind
        return None
    name, words, *rest = state
    value = (name, words.tobytes(), *rest)
    _known[:] = [(held, value)] if held else []
    return value


def _numpy_bytes(numpy: Any) -> bytes:
    # Reading a state takes numpy a tenth of a millisecond, looking at its memory a thousandth.
    generator: Any = getattr(numpy.random, "get_bit_generator", lambda: None)()
    if type(generator).__name__ != "MT19937":
        return b""
    return ctypes.string_at(generator.ctypes.state_address, 4 * 625)  # 624 words and the place of the next one


def _precision(torch: Any) -> str | None:
    with suppress(RuntimeError):  # the program uses PyTorch's newer settings, and these refuse to be mixed with them
        return torch.get_float32_matmul_precision()
    return None


def _bytes(state: Any) -> bytes:
    return state.numpy().tobytes()


def _state(torch: Any, state: bytes) -> Any:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
