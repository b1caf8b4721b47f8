"""The loop that every part of the recipe shares: schedule, clipping, log lines, checkpoints, a bound on time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from draft_emoji.recipe.checkpoint import load_checkpoint, save_checkpoint
from draft_emoji.recipe.presets import Training


@dataclass(frozen=True)
class Sitting:
    """Where and how long one process trains.

    Attributes:
        out: The recipe's folder; each part has its own folder in it.
        device: Such as ``"cpu"`` or ``"cuda"``.
        seed: All generators start from it and from the step, so that resuming changes nothing.
        minutes: The process stops after so long, with a checkpoint; None for no bound.
        steps: In place of the preset's number of updates; None to keep it.
    """

    out: Path
    device: str = "cpu"
    seed: int = 0
    minutes: float | None = None
    steps: int | None = None

    def autocast(self) -> contextlib.AbstractContextManager:
        """Bfloat16 where the machine multiplies it faster than float32."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16)


def fit(
    name: str,
    sitting: Sitting,
    training: Training,
    modules: dict[str, nn.Module],
    loss_of: Callable[[int], dict[str, torch.Tensor]],
    *,
    after: Callable[[int], None] | None = None,
    weight_decay: float = 0.01,
    every: int = 100,
    save_seconds: float = 150,
) -> int:
    """Train until the schedule or the time ends; resume from the part's folder if it holds a checkpoint.

    Args:
        name: The part's folder in `sitting.out`, and the log lines' first word.
        sitting: Where and how long.
        training: The schedule.
        modules: Everything a checkpoint holds; parameters that require a gradient are trained.
        loss_of: The named losses of an update, summed; it is given the step and must draw from it alone.
        after: Called after each update, for running averages.
        weight_decay: Of AdamW.
        every: Updates between log lines.
        save_seconds: Seconds between checkpoints.

    Returns:
        Updates done in all.
    """
    training = training.with_steps(sitting.steps)
    weights = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    folder = sitting.out / name
    step = load_checkpoint(folder, modules, optimizer)
    millions = sum(weight.numel() for weight in weights) / 1e6
    print(f"{name}: {millions:.2f} M trained, from step {step} of {training.steps}", flush=True)
    began = saved = reported = time.monotonic()
    reported_step, sums = step, {}
    while step < training.steps:
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step)
        # Layers that draw on their own, such as a latent's sample, also restart from the step.
        torch.manual_seed(sitting.seed * 1_000_003 + step)
        losses = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if after is not None:
            after(step)
        step += 1
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + value.detach()
        now = time.monotonic()
        if step % every == 0 or step == training.steps:
            count = step - reported_step
            means = "  ".join(f"{key} {float(value) / count:.4f}" for key, value in sums.items())
            rate = count * training.batch / (now - reported)
            print(f"{name} {step} {now - began:.0f} s  {means}  {rate:.0f}/s", flush=True)
            reported, reported_step, sums = now, step, {}
        if now - saved > save_seconds:
            save_checkpoint(folder, step, modules, optimizer)
            saved = now
        if sitting.minutes is not None and now - began > 60 * sitting.minutes:
            break
    save_checkpoint(folder, step, modules, optimizer)
    return step
