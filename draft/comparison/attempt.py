"""One training of one method, looked at from outside: proper samples on the way and where a budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from draft.comparison.memory import held_memory, peak_memory, restart_peak
from draft.comparison.record import Attempt, Point, read_attempt, write_attempt
from draft.comparison.samples import Panel, measure_panel
from draft.comparison.settings import Contender
from draft.diffusion.device import choose_device
from draft.diffusion.memory import told_memory
from draft.errors import ResourceError, StageError
from draft.isolation.reward import ending_processes
from draft.progress import Silent
from draft.rewards.reward import Term
from draft.training.train import Progressed, train
from draft.types import Prompts

_ENDLESS = 10**9
"""Updates of a training that its budget ends."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """How a training is looked at, and when it ends.

    Args:
        budget: Axis to what may be spent; the training ends when all of it is.
        cap: Seconds of training after which it ends in any case.
        every: Updates between two points of the curve; 0: no curve.
        curve: What a point of the curve is measured by.
        final: What is measured where a budget is spent.
    """

    budget: Mapping[str, float]
    cap: float
    every: int
    curve: Panel
    final: Panel


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What all trainings have in common.

    Args:
        model: Folder, checkpoint file or hub id.
        prompts: The training prompts.
        terms: The rewards with their weights.
    """

    model: str
    prompts: Prompts
    terms: Sequence[Term]


def attempt(
    contender: Contender,
    ground: Ground,
    inspection: Inspection,
    *,
    rate: float,
    seed: int,
    folder: Path,
    tell: Callable[[float, Mapping[str, float]], None],
) -> Attempt:
    """Train until the budget is spent; goes on where an interrupted one was, and does a finished one not again.

    Args:
        contender: The method and the settings of its trainings.
        ground: Model, prompts, rewards.
        inspection: What is looked at, and when it ends.
        rate: The learning rate.
        seed: The training's seed.
        folder: Gets what `train` writes, the adapter at each spent budget, and `done.json`.
        tell: Told after every update how much of the training is over, 0 to 1, and its line of metrics.

    Returns:
        What it came to. A training that breaks off after its first update, or for want of memory, is a failure that
        is told, not an error.

    Raises:
        DraftError: It cannot even begin.
    """
    done, notes = folder / "done.json", folder / "notes.json"
    if (finished := read_attempt(done)) is not None:
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    state = read_attempt(notes) or Attempt(rate=rate, seed=seed)
    device = choose_device(contender.device)
    held = held_memory(device)

    def after(progressed: Progressed) -> bool:
        nonlocal state
        state = replace(state, memory=_most(state.memory, peak_memory(device), held))
        state = _look(state, progressed, inspection, folder)
        write_attempt(state, notes)
        share = _share(state.spending, inspection)
        tell(share, progressed.row)
        restart_peak(device)  # what was looked at is no part of the training's memory
        return share >= 1

    restart_peak(device)
    try:
        with told_memory(), ending_processes(ground.terms):
            train(
                replace(contender, learning_rate=rate, max_steps=_ENDLESS),
                model=ground.model,
                prompts=ground.prompts,
                terms=ground.terms,
                seed=seed,
                folder=folder,
                progress=Silent(),
                after=after,
            )
    except StageError as error:
        if not _own_failure(error, folder):
            raise
        state = replace(state, failure=error.what)
    write_attempt(state, done)
    notes.unlink(missing_ok=True)
    return state


def _look(state: Attempt, progressed: Progressed, inspection: Inspection, folder: Path) -> Attempt:
    """Add what is to be seen after an update."""
    now, model = dict(progressed.totals), progressed.model

    def before(point: Point) -> bool:  # a training that was interrupted makes its last updates again
        return point.spending["updates"] < now["updates"]

    curve = tuple(filter(before, state.curve))
    spent = {axis: point for axis, point in state.spent.items() if before(point)}
    if inspection.every and progressed.step % inspection.every == 0:
        curve += (Point(spending=now, figures=measure_panel(model, inspection.curve)),)
    newly = [axis for axis, limit in inspection.budget.items() if axis not in spent and now[axis] >= limit]
    if newly:
        point = Point(spending=now, figures=measure_panel(model, inspection.final))
        spent |= dict.fromkeys(newly, point)
    for axis in newly:
        progressed.save(folder / f"{axis}.safetensors")
    return replace(state, curve=curve, spent=spent, spending=now)


def _share(spending: Mapping[str, float], inspection: Inspection) -> float:
    slowest = min(spending[axis] / limit for axis, limit in inspection.budget.items())
    return min(1.0, max(slowest, spending["seconds"] / inspection.cap))


def _own_failure(error: StageError, folder: Path) -> bool:
    """Whether the method is to blame, not the file: what is wrong with a file shows before the first update."""
    metrics = folder / "metrics.jsonl"
    began = metrics.is_file() and metrics.stat().st_size > 0
    full = isinstance(error, ResourceError) and isinstance(error.__cause__, torch.OutOfMemoryError | MemoryError)
    return began or full


def _most(known: int | None, peak: int | None, held: int | None) -> int | None:
    if peak is None or held is None:
        return known
    return max(known or 0, peak - held)
