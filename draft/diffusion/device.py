"""The device that a setting means."""

from __future__ import annotations

import torch

from draft.errors import ResourceError, StageError


def choose_device(device: str) -> torch.device:
    """The torch device of a setting; `auto` is the first accelerator, else the CPU.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...

    Returns:
        The device.

    Raises:
        StageError: There is no such device, or (ResourceError) not here.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    gone = f"device {device!r} is not available here"
    hint = "use device: auto or device: cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise StageError(f"{gone}: {str(error).splitlines()[0]}", hint=hint) from error
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(
            f"{gone}: {str(error).splitlines()[0]}",
            needs="a machine that has this device, or another device",
            hint=hint,
        ) from error
    return chosen
