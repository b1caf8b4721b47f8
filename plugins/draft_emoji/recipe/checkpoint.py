"""Checkpoints that survive being killed while they are written, and resume to the same next update."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it in place at once.

    Args:
        target: The file that readers open; never seen half-written.
        write: Writes a file at the path it is given.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def save_tensors(target: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write named tensors as safetensors, at once."""
    # Cloned, since tied weights share their memory, which the format refuses.
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(target, lambda part: save_file(ready, part, metadata={"format": "pt"}))


def save_checkpoint(folder: Path, step: int, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Write modules and optimizer; the step is written last and with the optimizer, so they agree.

    Args:
        folder: One folder for each part of the recipe.
        step: Updates done.
        modules: Each becomes ``NAME.safetensors``.
        optimizer: Its state becomes ``optimizer.pt``.
    """
    for name, module in modules.items():
        save_tensors(folder / f"{name}.safetensors", module.state_dict())
    state = {"step": step, "optimizer": optimizer.state_dict()}
    write_whole(folder / "optimizer.pt", lambda part: torch.save(state, part))


def load_checkpoint(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Read what `save_checkpoint` wrote, or some modules without an optimizer: a start and not a checkpoint.

    Returns:
        Updates done; 0 where there is no checkpoint.
    """
    for name, module in modules.items():
        if (weights := folder / f"{name}.safetensors").exists():
            module.load_state_dict(load_file(weights))
    file = folder / "optimizer.pt"
    if not file.exists():
        return 0
    state = torch.load(file, map_location="cpu", weights_only=True)
    fused = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, mode in zip(optimizer.param_groups, fused, strict=True):
        # How the update is computed belongs to the machine, not to the checkpoint.
        group["fused"] = mode
    return state["step"]
