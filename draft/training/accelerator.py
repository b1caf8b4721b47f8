"""Where a training runs, through accelerate: one process on one device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.tracking import get_available_trackers

from draft.diffusion.device import choose_device
from draft.errors import StageError


def make_accelerator(device: str, *, report_to: Sequence[str], folder: Path) -> Accelerator:
    """An accelerator for one process.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        report_to: Names of experiment trackers.
        folder: Where file-based trackers write.

    Returns:
        The accelerator.

    Raises:
        StageError: More than one process, an unknown device, or a tracker that is not installed.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1") or 1)
    if processes > 1:
        raise StageError(
            f"training runs in one process only (got WORLD_SIZE={processes}): gradients are not synchronised between "
            "processes yet, so several would train different adapters",
            hint="start it with plain `draft run`, without accelerate launch or torchrun",
        )
    available = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in report_to:
        if name not in available:
            raise StageError(
                f"tracker {name!r} is not available (installed: {', '.join(available) or 'none'})",
                hint="install it, or remove it from report_to; metrics.jsonl is always written",
            )
    choose_device(device)
    return Accelerator(
        # It keeps the first device it had for the whole process and refuses another one; the trackers need neither.
        cpu=device == "cpu" and not is_initialized(),
        mixed_precision="no",
        log_with=list(report_to) or None,
        project_dir=folder if report_to else None,
    )
