"""The most memory held between two moments."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def restart_peak(device: torch.device) -> None:
    """Forget the peak so far.

    Args:
        device: Where the work is done.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        _RESET.write_text("5")  # proc(5): sets the high-water mark to what is resident now


def peak_memory(device: torch.device) -> int | None:
    """The most memory held since `restart_peak`: the accelerator's tensors, or on a CPU the process.

    Args:
        device: Where the work is done.

    Returns:
        Bytes; None where the system does not report it.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _resident("VmHWM")


def held_memory(device: torch.device) -> int | None:
    """What is held now, after all memory that can be freed has been.

    Args:
        device: Where the work is done.

    Returns:
        Bytes, as `peak_memory` counts them; None where the system does not report it.
    """
    gc.collect()
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if _STATUS.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory for later; others do not
        if trim is not None:
            trim(0)
    return _resident("VmRSS")


def _resident(field: str) -> int | None:
    try:
        line = re.search(rf"^{field}:\s*(\d+) kB", _STATUS.read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(line[1]) * 1024 if line else None
