"""Whether a model fits this machine: told before its weights are read, or when memory runs out after all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from draft.diffusion.device import choose_device
from draft.diffusion.families import denoiser_parameters
from draft.errors import ResourceError

LARGE = 200_000_000
"""Parameters of a denoiser above which `device: auto` does not settle for a CPU."""

_LOADED_BYTES = 4  # weights are read in float32, whatever precision they get then


def check_fits(model: str, device: str) -> None:
    """Refuse a model that this machine is too small for, before any of its weights are read or downloaded.

    On a CPU: a denoiser of more than `LARGE` parameters where nobody asked for a CPU, and one whose weights alone are
    larger than the free memory. An accelerator shows by itself what it has room for, see `told_memory`.

    Args:
        model: A folder, a `.safetensors` checkpoint or a hub id.
        device: The setting: `auto`, `cpu`, `cuda`, ...

    Raises:
        ResourceError: It does not fit.
    """
    if choose_device(device).type != "cpu":
        return
    parameters = denoiser_parameters(model)
    if parameters is None:
        return
    size = f"{parameters / 1e6:.0f} M parameters, {_gigabytes(parameters * _LOADED_BYTES)} in float32"
    if device == "auto" and parameters > LARGE:
        raise ResourceError(
            f"model {model!r} is too large to go without a GPU, and there is none here",
            needs=f"a GPU with room for the denoiser ({size}) and for what is computed with it",
            hint="`device: cpu` insists, if you have the time",
        )
    free = free_memory()
    if free is not None and parameters * _LOADED_BYTES > free:
        raise ResourceError(
            f"model {model!r} does not fit into the memory that is free here ({_gigabytes(free)})",
            needs=f"room for the denoiser ({size}) and for what is computed with it",
            hint="close other programs, or use a machine with more memory",
        )


@contextmanager
def told_memory() -> Iterator[None]:
    """Tell memory that runs out inside the block as what a stage needs, instead of as a bug.

    Yields:
        Nothing.

    Raises:
        ResourceError: Memory ran out, of an accelerator or of the machine.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # PyTorch's OutOfMemoryError is a RuntimeError
        if isinstance(error, torch.OutOfMemoryError):
            whose = "the accelerator's memory"
        elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            whose = "this machine's memory"
        else:
            raise
        tried = re.search(r"ried to allocate (\d[\d.]* \w+)", str(error))
        raise ResourceError(
            f"{whose} is full" + (f", and {tried[1]} more are wanted" if tried else ""),
            needs="more memory for this batch_size and this resolution",
            hint="make them smaller; a training also needs less with mixed_precision: bf16, micro_batch_size: 1 and "
            "gradient_checkpointing: true",
        ) from error


def free_memory() -> int | None:
    """The bytes of memory that programs may still take, or all there is where only that is known; None: unknown."""
    try:
        # What the kernel would free for a program counts as free; sysconf's free pages leave that out.
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
