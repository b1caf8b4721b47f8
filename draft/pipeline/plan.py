"""What a run would do: which stages are used again, which run, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from draft.errors import ConfigError, StageError, did_you_mean
from draft.files import sha256
from draft.marks import Extends, leaves
from draft.pipeline.cache import StageRecord, read_record
from draft.pipeline.check import Pipeline
from draft.pipeline.identity import differences, fingerprint, identity, lengths, settled, uncompared
from draft.pipeline.kinds.kind import CheckedStage
from draft.pipeline.partial import (
    PARTIAL,
    Begun,
    holds_checkpoints,
    holds_work,
    inert_changes,
    kept_folders,
    kept_name,
    read_begun,
)
from draft.pipeline.reuse import Past, can_mend, lengthened, lost_byproduct, reasons_to_run


@dataclass(frozen=True)
class Step:
    """What happens to one stage.

    Args:
        name: The stage.
        action: `reuse` its results, `run` it, `continue` an interrupted run of it, or `skip` it.
        reasons: Why it runs, and what becomes of what is there, in words.
        identity: Everything its result depends on.
        fingerprint: The sha256 of `identity`; of a stage that is used again, the one that it was made under.
        kept: Folders that are moved aside, by their old and new names: the interrupted run, the finished stage.
        carried: Names in the finished stage's folder that it goes on from.
        branch: The checkpoint of another run that it begins at, where it is once folders were moved aside.
    """

    name: str
    action: Literal["reuse", "run", "continue", "skip"]
    reasons: tuple[str, ...]
    identity: Mapping[str, Any]
    fingerprint: str
    kept: Mapping[str, str] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    branch: Path | None = None

    @property
    def runs(self) -> bool:
        """Whether the stage does anything."""
        return self.action in ("run", "continue")

    def noted(self, note: str) -> Step:
        """The step with a note on the results that it uses again, if it does."""
        return replace(self, reasons=(*self.reasons, note)) if self.action == "reuse" else self

    def __str__(self) -> str:
        words = {"reuse": "reused", "run": "will run", "continue": "will continue", "skip": "left out"}[self.action]
        return f"{self.name}: {words}" + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


def make_plan(
    pipeline: Pipeline,
    runs: Path,
    *,
    from_stage: str | None = None,
    only: str | None = None,
    force: bool = False,
    fresh: bool = False,
    branch_from: str | None = None,
    verify: bool = False,
) -> list[Step]:
    """Decide what a run does, from the records of earlier ones.

    Args:
        pipeline: The pipeline.
        runs: The folder with its stage folders.
        from_stage: Run this stage and all after it again, whatever there is.
        only: Touch this stage alone; those it refers to must be there.
        force: Run every stage again (with `only`: that one).
        fresh: Delete interrupted runs instead of continuing them.
        branch_from: `UPDATE` or `STAGE:UPDATE`: the stage begins at its own checkpoint after that update, whatever
            else has changed since. Without a stage: the one that can branch and would run.
        verify: Read all results that could be used again and compare them with their recorded sha256. Otherwise only
            those of stages that one which runs refers to.

    Returns:
        One step per stage, in order.

    Raises:
        ConfigError: `from_stage`, `only` or `branch_from` names no such stage.
        StageError: `only` needs a stage that has not run or no longer fits, or there is no such checkpoint.
    """
    names = list(pipeline.stages)
    for option, name in (("--from", from_stage), ("--only", only)):
        if name is not None and name not in names:
            hint = did_you_mean(name, names, otherwise=f"the stages are {', '.join(names)}")
            raise ConfigError(f"unknown stage {name!r}", where=f"command line, {option}", hint=hint)
    if only is not None and from_stage is not None:
        raise ConfigError("--from and --only cannot go together", where="command line")
    forced = set(names if force else names[names.index(from_stage) :] if from_stage is not None else ())
    records = {name: read_record(runs / name) for name in pipeline.stages}
    verified = frozenset(pipeline.stages) if verify else frozenset()
    while True:
        steps: dict[str, Step] = {}
        for name, stage in pipeline.stages.items():
            current = identity(stage, {other: steps[other].fingerprint for other in stage.upstream})
            steps[name] = _step(
                stage, runs, current, steps, records, forced=name in forced, fresh=fresh, content=name in verified
            )
        # What a stage that runs takes from one that does not is read before it is used.
        running = [stage for name, stage in pipeline.stages.items() if steps[name].runs and only in (None, name)]
        used = {other for stage in running for other in stage.upstream if steps[other].action == "reuse"}
        if used <= verified:
            break
        verified |= used
    if verify:
        steps = {name: step.noted("its files were read and are intact") for name, step in steps.items()}
    if only is not None:
        steps = _alone(only, pipeline, steps)
    if branch_from is not None:
        name, update = _branching(branch_from, pipeline, steps)
        steps[name] = _branched(pipeline.stages[name], steps[name], runs, records[name], update)
    return list(steps.values())


def _step(
    stage: CheckedStage,
    runs: Path,
    current: Mapping[str, Any],
    steps: Mapping[str, Step],
    records: Mapping[str, StageRecord | None],
    *,
    forced: bool,
    fresh: bool,
    content: bool,
) -> Step:
    folder, partial = runs / stage.name, runs / f"{stage.name}{PARTIAL}"
    again = tuple(other for other in stage.upstream if steps[other].action != "reuse")
    past = Past(stage=stage, folder=folder, current=current, records=records, again=again, content=content)
    record, begun = past.record, read_begun(partial)
    begun_before = settled(begun.identity, stage) if begun is not None else {}
    further = lengths(begun_before, current, stage)
    # What branched goes on as a branch alone, with --branch-from.
    begun_fits = begun is not None and not begun.branch and (begun_before == current or bool(further))
    reasons = ["forced"] if forced else reasons_to_run(past)
    goes_on = begun is not None and begun_fits and not forced and not fresh
    if not goes_on and not reasons and record is not None:
        notes = ["branched from a checkpoint of other settings"] if record.branch else []
        notes += [note] if (note := uncompared(record.identity, stage)) else []
        notes += [lost] if (lost := lost_byproduct(past)) else []
        return Step(stage.name, "reuse", tuple(notes), current, record.fingerprint)
    longer = {} if forced else lengthened(past)
    mended = not forced and not goes_on and can_mend(past)
    kept: dict[str, str] = {}
    if goes_on and begun is not None:
        changes = [f"{key} {old} -> {new}" for key, (old, new) in further.items()]
        reasons = [
            "was interrupted",
            *(f"goes on with {change}" for change in (*changes, *inert_changes(begun, stage))),
        ]
        reasons += [note] if (note := uncompared(begun.identity, stage)) else []
    elif not fresh and partial.is_dir() and holds_work(partial):
        kept[partial.name] = kept_name(folder)
        why = "forced" if begun_fits else _misfit(begun, stage, current)
        reasons.append(f"an interrupted run is kept in {kept[partial.name]} ({why})")
    if longer and not goes_on:
        changes = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in longer.items())
        reasons = [f"goes on from the finished one: {changes}", *reasons[1:]]
    elif mended:
        reasons = [f"{reasons[0]}; written again from its last state", *reasons[1:]]
    elif not (forced and past.fits) and not longer and folder.is_dir() and holds_checkpoints(folder):
        kept[folder.name] = kept_name(folder, kept.values())
        reasons.append(f"the finished one with its checkpoints is kept in {kept[folder.name]}")
    if folder.is_symlink() and folder.name not in kept:
        reasons.append(f"{folder.name} is a link, which is replaced; {os.readlink(folder)!r} stays as it is")
    action: Literal["run", "continue"] = "continue" if goes_on or longer or mended else "run"
    carried = stage.kind.carries if (longer or mended) and not goes_on else ()
    return Step(stage.name, action, tuple(reasons), current, fingerprint(current), kept, carried)


def _branching(text: str, pipeline: Pipeline, steps: Mapping[str, Step]) -> tuple[str, int]:
    """The stage and the update that `--branch-from` means."""
    where = "command line, --branch-from"
    name, _, number = text.rpartition(":")
    if not number.isdecimal():
        raise ConfigError(f"must be an update, or STAGE:UPDATE (got {text!r})", where=where)
    able = [stage.name for stage in pipeline.stages.values() if stage.kind.checkpoint is not None]
    if name:
        if name not in able:
            hint = did_you_mean(name, able, otherwise=f"those that can: {', '.join(able) or 'none'}")
            raise ConfigError(f"stage {name!r} cannot branch", where=where, hint=hint)
        return name, int(number)
    running = [stage for stage in able if steps[stage].action in ("run", "continue")]
    if len(running) != 1:
        what = "no stage that can branch would run" if not running else f"{', '.join(running)} would run"
        raise ConfigError(f"it is not clear which stage branches: {what}", where=where, hint="write STAGE:UPDATE")
    return running[0], int(number)


def _branched(stage: CheckedStage, step: Step, runs: Path, record: StageRecord | None, update: int) -> Step:
    """The step of a stage that begins at one of its own checkpoints, or goes on with such a run."""
    assert stage.kind.checkpoint is not None
    folder, partial = runs / stage.name, runs / f"{stage.name}{PARTIAL}"
    begun = read_begun(partial)
    same_branch = begun is not None and begun.branch and settled(begun.identity, stage) == step.identity
    # A run that branched has checkpoints of its own; it goes on from the one that it began at.
    folders = [*([] if same_branch else [partial]), folder, *kept_folders(folder)]
    checkpoint = stage.kind.checkpoint(folders, update)
    digest = sha256(checkpoint)
    if step.action == "reuse" and record is not None:
        if record.branch != digest:
            what = f"stage {stage.name!r} is finished with these settings, so there is nothing to branch for"
            raise ConfigError(what, where="command line, --branch-from", hint="change a setting, or add --force")
        return step
    for key, value, field_marks in leaves(stage.config):
        if any(isinstance(mark, Extends) for mark in field_marks) and value <= update:
            what = f"stages.{stage.name}.{key} must be more than the {update} updates that the branch begins after"
            raise ConfigError(f"{what} (got {value})", where="command line, --branch-from")
    if same_branch and begun is not None and begun.branch == digest:
        reasons = ("was interrupted", f"branched from update {update}")
        kept = {name: new for name, new in step.kept.items() if name != partial.name}
        return replace(step, action="continue", reasons=reasons, kept=kept, branch=_moved_aside(checkpoint, runs, kept))
    kept = dict(step.kept)
    if partial.is_dir() and holds_work(partial) and partial.name not in kept:
        kept[partial.name] = kept_name(folder, kept.values())
    if folder.is_dir() and holds_checkpoints(folder) and folder.name not in kept:
        kept[folder.name] = kept_name(folder, kept.values())
    names = [f"what is there is kept in {name}" for name in kept.values()]
    reasons = (f"branches from update {update}", *names)
    return replace(
        step, action="run", reasons=reasons, kept=kept, carried=(), branch=_moved_aside(checkpoint, runs, kept)
    )


def _moved_aside(path: Path, runs: Path, kept: Mapping[str, str]) -> Path:
    """Where a file is once an interrupted run was moved aside; a finished stage moves only when the new one is done."""
    first, *rest = path.relative_to(runs).parts
    moves = first.endswith(PARTIAL) and first in kept
    return runs.joinpath(kept[first], *rest) if moves else path


def _misfit(begun: Begun | None, stage: CheckedStage, current: Mapping[str, Any]) -> str:
    """Why an interrupted run cannot be continued."""
    if begun is None or not begun.identity:
        return "there is no record of what it is a run of"
    return "; ".join(differences(settled(begun.identity, stage), current)) or "it is a run of something else"


def _alone(only: str, pipeline: Pipeline, steps: Mapping[str, Step]) -> dict[str, Step]:
    for other in pipeline.stages[only].upstream:
        if steps[other].action != "reuse":
            reasons = "; ".join(steps[other].reasons)
            raise StageError(
                f"stage {only!r} needs {other!r}, which must run first ({reasons})",
                where="command line, --only",
                hint=f"drop --only, or run --only {other} first",
            )
    return {
        name: step if name == only else Step(name, "skip", (), step.identity, step.fingerprint)
        for name, step in steps.items()
    }
