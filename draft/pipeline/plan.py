"""What a run would do: which stages are used again, which run, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from draft.errors import ConfigError, StageError, did_you_mean
from draft.pipeline.cache import StageRecord, damage, read_record
from draft.pipeline.check import Pipeline
from draft.pipeline.identity import differences, fingerprint, identity, settled
from draft.pipeline.kinds.kind import CheckedStage
from draft.pipeline.partial import (
    PARTIAL,
    Begun,
    holds_checkpoints,
    holds_work,
    inert_changes,
    kept_name,
    read_begun,
)
from draft.pipeline.references import parse_reference


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
    """

    name: str
    action: Literal["reuse", "run", "continue", "skip"]
    reasons: tuple[str, ...]
    identity: Mapping[str, Any]
    fingerprint: str
    kept: Mapping[str, str] = field(default_factory=dict)

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
) -> list[Step]:
    """Decide what a run does, from the records of earlier ones.

    Args:
        pipeline: The pipeline.
        runs: The folder with its stage folders.
        from_stage: Run this stage and all after it again, whatever there is.
        only: Touch this stage alone; those it refers to must be there.
        force: Run every stage again (with `only`: that one).
        fresh: Forget interrupted runs instead of continuing them.

    Returns:
        One step per stage, in order.

    Raises:
        ConfigError: `from_stage` or `only` is no stage.
        StageError: `only` needs a stage that has not run or no longer fits.
    """
    names = list(pipeline.stages)
    for option, name in (("--from", from_stage), ("--only", only)):
        if name is not None and name not in names:
            hint = did_you_mean(name, names, otherwise=f"the stages are {', '.join(names)}")
            raise ConfigError(f"unknown stage {name!r}", where=f"command line, {option}", hint=hint)
    if only is not None and from_stage is not None:
        raise ConfigError("--from and --only cannot go together", where="command line")
    forced = set(names if force else names[names.index(from_stage) :] if from_stage is not None else ())
    steps: dict[str, Step] = {}
    records: dict[str, StageRecord | None] = {}
    for name, stage in pipeline.stages.items():
        found = identity(stage, {other: steps[other].fingerprint for other in stage.upstream})
        records[name] = read_record(runs / name)
        steps[name] = _step(stage, runs, found, steps, records, forced=name in forced, fresh=fresh)
    if only is not None:
        steps = _alone(only, pipeline, steps)
    return list(steps.values())


def _step(
    stage: CheckedStage,
    runs: Path,
    found: Mapping[str, Any],
    steps: Mapping[str, Step],
    records: Mapping[str, StageRecord | None],
    *,
    forced: bool,
    fresh: bool,
) -> Step:
    folder, partial = runs / stage.name, runs / f"{stage.name}{PARTIAL}"
    record, begun = records[stage.name], read_begun(partial)
    fits = record is not None and settled(record.identity, stage) == found
    begun_fits = begun is not None and settled(begun.identity, stage) == found
    reasons = ["forced"] if forced else _reasons(stage, folder, found, steps, records)
    goes_on = begun is not None and begun_fits and not forced and not fresh
    if not goes_on and not reasons and record is not None:
        return Step(stage.name, "reuse", (), found, record.fingerprint)
    kept: dict[str, str] = {}
    if goes_on and begun is not None:
        reasons = ["was interrupted", *(f"goes on with {change}" for change in inert_changes(begun, stage))]
    elif not fresh and partial.is_dir() and holds_work(partial):
        kept[partial.name] = kept_name(folder)
        why = "forced" if begun_fits else _misfit(begun, stage, found)
        reasons.append(f"an interrupted run is kept in {kept[partial.name]} ({why})")
    if not (fits and forced) and folder.is_dir() and holds_checkpoints(folder):
        kept[folder.name] = kept_name(folder, kept.values())
        reasons.append(f"the finished one with its checkpoints is kept in {kept[folder.name]}")
    action: Literal["run", "continue"] = "continue" if goes_on else "run"
    return Step(stage.name, action, tuple(reasons), found, fingerprint(found), kept)


def _reasons(
    stage: CheckedStage,
    folder: Path,
    found: Mapping[str, Any],
    steps: Mapping[str, Step],
    records: Mapping[str, StageRecord | None],
) -> list[str]:
    """Why a stage must run; nothing where its results can be used again."""
    record = records[stage.name]
    reasons: list[str] = []
    again = [other for other in stage.upstream if steps[other].action != "reuse"]
    if record is None:
        reasons.append("has not run" if not folder.exists() else "no usable record")
    elif (before := settled(record.identity, stage)) != found:
        reasons += differences(before, found) or ["fingerprint changed"]
    elif broken := damage(record, folder):
        reasons.append(broken)
    elif not again and (moved := _moved(record, records)):
        reasons.append(f"upstream changed: {moved}")
    if again and not any(reason.startswith("upstream changed") for reason in reasons):
        reasons.append(f"upstream runs: {', '.join(again)}")
    return reasons


def _misfit(begun: Begun | None, stage: CheckedStage, found: Mapping[str, Any]) -> str:
    """Why an interrupted run cannot be continued."""
    if begun is None or not begun.identity:
        return "there is no record of what it is a run of"
    return "; ".join(differences(settled(begun.identity, stage), found)) or "it is a run of something else"


def _moved(record: StageRecord, records: Mapping[str, StageRecord | None]) -> str:
    """The first input whose content is no longer what the stage saw."""
    for text, digest in record.inputs.items():
        reference = parse_reference(text)
        source = records.get(reference.stage) if reference else None
        if reference and (source is None or source.digest(reference.output) != digest):
            return f"{reference.stage}.{reference.output}"
    return ""


def _alone(only: str, pipeline: Pipeline, steps: Mapping[str, Step]) -> dict[str, Step]:
    for other in pipeline.stages[only].upstream:
        if steps[other].action != "reuse":
            reasons = "; ".join(steps[other].reasons)
            raise StageError(
                f"stage {only!r} needs {other!r}, which must run first ({reasons})",
                where="command line, --only",
                hint=f"leave out --only, or run --only {other} first",
            )
    return {
        name: step if name == only else Step(name, "skip", (), step.identity, step.fingerprint)
        for name, step in steps.items()
    }
