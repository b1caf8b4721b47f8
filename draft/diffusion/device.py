"""The device that a setting means."""

from __future__ import annotations

import torch

from draft.errors import StageError


def choose_device(device: str) -> torch.device:
    """The torch device of a setting; `auto` is the first accelerator, else the CPU.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...

    Returns:
        The device.

    Raises:
        StageError: The device does not exist here.
    """
    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise StageError(
            f"device {device!r} is not available here: {str(error).splitlines()[0]}",
            hint="use device: auto or device: cpu",
        ) from error
    return chosen
