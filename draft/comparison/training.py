"""One training of one method, evaluated on proper samples on the way and when a budget is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from draft.comparison.memory import held_memory, peak_memory, restart_peak
from draft.comparison.record import Point, TrainingRecord, read_training_record, write_training_record
from draft.comparison.samples import MetricSet, measure_metrics
from draft.comparison.settings import MethodConfig
from draft.diffusion.device import choose_device
from draft.diffusion.memory import explain_out_of_memory
from draft.errors import ResourceError, StageError
from draft.isolation.reward import ending_processes
from draft.progress import Silent
from draft.rewards.reward import Term
from draft.training.branch import FOLDER, remove_superseded
from draft.training.train import Progressed, train
from draft.types import Prompts

_ENDLESS = 10**9
"""Updates of a training that its budget ends."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """When a training is evaluated, on what, and when it ends.

    Args:
        budget: Axis to what may be spent; the training ends when all of it is.
        cap: Seconds of training after which it ends in any case.
        every: Updates between two points of the curve; 0: no curve.
        curve: What a point of the curve is measured by.
        final: What is measured when a budget is spent.
    """

    budget: Mapping[str, float]
    cap: float
    every: int
    curve: MetricSet
    final: MetricSet


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What all trainings of a comparison share.

    Args:
        model: Folder, checkpoint file or hub id.
        prompts: The training prompts.
        terms: The rewards with their weights.
    """

    model: str
    prompts: Prompts
    terms: Sequence[Term]


def run_training(
    config: MethodConfig,
    inputs: TrainingInputs,
    plan: EvaluationPlan,
    *,
    rate: float,
    seed: int,
    folder: Path,
    report: Callable[[float, Mapping[str, float]], None],
) -> TrainingRecord:
    """Train until the budget is spent; an interrupted training is resumed, a finished one read from its file.

    Args:
        config: The method and the settings of its trainings.
        inputs: Model, prompts, rewards.
        plan: When it is evaluated, and when it ends.
        rate: The learning rate.
        seed: The training's seed.
        folder: Gets what `train` writes, the adapter at each spent budget, and `done.json`.
        report: Called after every update with the share of the training that is over, 0 to 1, and its line of metrics.

    Returns:
        What it came to. A training that breaks off after its first update, or for lack of memory, is a result with a
        `failure`, not an error.

    Raises:
        DraftError: It cannot even begin.
    """
    done, notes = folder / "done.json", folder / "notes.json"
    if (finished := read_training_record(done)) is not None:
        _tidy(folder)
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    noted = read_training_record(notes)
    if noted is None:  # a checkpoint goes on after evaluations that only the notes hold: it is worth nothing without
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    state = noted or TrainingRecord(rate=rate, seed=seed)
    device = choose_device(config.device)
    baseline = held_memory(device)

    def after(progressed: Progressed) -> bool:
        nonlocal state
        state = replace(state, memory=_most(state.memory, peak_memory(device), baseline))
        state = _evaluate(state, progressed, plan, folder)
        write_training_record(state, notes)
        share = _share(state.spending, plan)
        report(share, progressed.row)
        restart_peak(device)  # the evaluation is no part of the training's memory
        return share >= 1

    restart_peak(device)
    try:
        with explain_out_of_memory(), ending_processes(inputs.terms):
            train(
                replace(config, learning_rate=rate, max_steps=_ENDLESS),
                model=inputs.model,
                prompts=inputs.prompts,
                terms=inputs.terms,
                seed=seed,
                folder=folder,
                progress=Silent(),
                after=after,
            )
    except StageError as error:
        if not _own_failure(error, folder):
            raise
        state = replace(state, failure=error.what)
    write_training_record(state, done)
    _tidy(folder)
    return state


def _tidy(folder: Path) -> None:
    """Remove what only an interrupted training goes on from, once the record of the finished one is written."""
    remove_superseded(folder / FOLDER, keep_final=False)
    (folder / "notes.json").unlink(missing_ok=True)


def _evaluate(state: TrainingRecord, progressed: Progressed, plan: EvaluationPlan, folder: Path) -> TrainingRecord:
    """Add the points of the curve and of the budgets that an update reaches."""
    now, model = dict(progressed.totals), progressed.model

    def before(point: Point) -> bool:  # a training that was interrupted repeats its last updates
        return point.spending["updates"] < now["updates"]

    curve = tuple(filter(before, state.curve))
    spent = {axis: point for axis, point in state.spent.items() if before(point)}
    if plan.every and progressed.step % plan.every == 0:
        curve += (Point(spending=now, figures=measure_metrics(model, plan.curve)),)
    newly = [axis for axis, limit in plan.budget.items() if axis not in spent and now[axis] >= limit]
    if newly:
        point = Point(spending=now, figures=measure_metrics(model, plan.final))
        spent |= dict.fromkeys(newly, point)
    for axis in newly:
        progressed.save(folder / f"{axis}.safetensors")
    return replace(state, curve=curve, spent=spent, spending=now)


def _share(spending: Mapping[str, float], plan: EvaluationPlan) -> float:
    slowest = min(spending[axis] / limit for axis, limit in plan.budget.items())
    return min(1.0, max(slowest, spending["seconds"] / plan.cap))


def _own_failure(error: StageError, folder: Path) -> bool:
    """Whether the method is to blame, not the file: what is wrong with a file shows before the first update."""
    metrics = folder / "metrics.jsonl"
    began = metrics.is_file() and metrics.stat().st_size > 0
    if isinstance(error.__cause__, OSError):  # a full disk is no property of a method
        return False
    full = isinstance(error, ResourceError) and isinstance(error.__cause__, torch.OutOfMemoryError | MemoryError)
    return began or full


def _most(recorded: int | None, peak: int | None, baseline: int | None) -> int | None:
    if peak is None or baseline is None:
        return recorded
    return max(recorded or 0, peak - baseline)
