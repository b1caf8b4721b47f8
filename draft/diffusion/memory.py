"""Whether a model fits this machine: reported before its weights are read, or when memory runs out after all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from draft.diffusion.device import choose_device
from draft.diffusion.families import count_parameters
from draft.errors import ResourceError, memory_shortage

LARGE = 200_000_000
"""Parameters of a network above which `device: auto` does not settle for a CPU."""


def require_memory(model: str, device: str, dtype: torch.dtype) -> None:
    """Refuse a model that this machine is too small for, before any of its weights are read or downloaded.

    On a CPU: a network of more than `LARGE` parameters where nobody asked for a CPU, and one whose weights alone are
    larger than the free memory. Text encoders are freed before the denoiser is read, so that the larger of the two
    counts. An accelerator shows by itself what it has room for, see `explain_out_of_memory`.

    Args:
        model: A folder, a `.safetensors` checkpoint or a hub id.
        device: The setting: `auto`, `cpu`, `cuda`, ...
        dtype: Precision in which the weights are read.

    Raises:
        ResourceError: It does not fit.
    """
    if choose_device(device).type != "cpu":
        return
    counts = count_parameters(model)
    if not counts:
        return
    denoiser = sum(count for name, count in counts.items() if name in ("unet", "transformer"))
    encoders = sum(counts.values()) - denoiser
    parameters, what = max((denoiser, "the denoiser"), (encoders, "the text encoders"))
    size = parameters * dtype.itemsize
    named = f"{what} ({parameters / 1e6:.0f} M parameters, {_gigabytes(size)} in {str(dtype).removeprefix('torch.')})"
    if device == "auto" and parameters > LARGE:
        raise ResourceError(
            f"model {model!r} is too large to go without a GPU, and there is none here",
            needs=f"a GPU with room for {named} and for what is computed with it",
            hint="`device: cpu` insists, if you have the time",
        )
    free = free_memory()
    if size > free:
        raise ResourceError(
            f"model {model!r} does not fit into the memory that is free here ({_gigabytes(free)})",
            needs=f"room for {named} and for what is computed with it",
            hint="close other programs, or use a machine with more memory",
        )


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Report memory that runs out inside the block as what a stage needs, instead of as a bug.

    Yields:
        Nothing.

    Raises:
        ResourceError: Memory ran out, of an accelerator or of the machine.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:  # PyTorch's OutOfMemoryError is a RuntimeError
        if (shortage := memory_shortage(error)) is None:
            raise
        raise ResourceError(
            shortage,
            needs="more memory for this batch_size and this resolution",
            hint="make them smaller; a training also needs less with mixed_precision: bf16, micro_batch_size: 1 and "
            "gradient_checkpointing: true",
        ) from error


def free_memory() -> int:
    """The bytes of memory that programs may still take, with what the system would free for them."""
    return int(psutil.virtual_memory().available)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
