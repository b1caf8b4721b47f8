"""What a run would do: which stages are used again, which run, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from draft.errors import ConfigError, StageError, did_you_mean
from draft.pipeline.cache import StageRecord, damage, differences, fingerprint, identity, read_record
from draft.pipeline.check import CheckedStage, Pipeline
from draft.pipeline.graph import parse_reference

PARTIAL = ".partial"
BEGUN = "begun.json"
"""In a `.partial` folder: the fingerprint of the run that began it."""


@dataclass(frozen=True)
class Step:
    """What happens to one stage.

    Args:
        name: The stage.
        action: `reuse` its results, `run` it, `continue` an interrupted run of it, or `skip` it.
        reasons: Why it runs, in words.
        identity: Everything its result depends on.
        fingerprint: The sha256 of `identity`.
    """

    name: str
    action: Literal["reuse", "run", "continue", "skip"]
    reasons: tuple[str, ...]
    identity: Mapping[str, Any]
    fingerprint: str

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


def begun(folder: Path) -> str:
    """The fingerprint of an interrupted run, or nothing."""
    try:
        return str(json.loads((folder / BEGUN).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # not ours or damaged: it cannot be continued


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
    mark = fingerprint(found)
    if forced:
        return Step(stage.name, "run", ("forced",), found, mark)
    record = records[stage.name]
    reasons: list[str] = []
    again = [other for other in stage.upstream if steps[other].action != "reuse"]
    if record is None:
        reasons.append("has not run" if not (runs / stage.name).exists() else "no usable record")
    elif record.fingerprint != mark:
        reasons += differences(record.identity, found) or ["fingerprint changed"]
    elif broken := damage(record, runs / stage.name):
        reasons.append(broken)
    elif not again and (moved := _moved(record, records)):
        reasons.append(f"upstream changed: {moved}")
    if again and not any(reason.startswith("upstream changed") for reason in reasons):
        reasons.append(f"upstream runs: {', '.join(again)}")
    partial = runs / f"{stage.name}{PARTIAL}"
    if not fresh and partial.is_dir() and begun(partial) == mark:
        return Step(stage.name, "continue", ("was interrupted",), found, mark)
    return Step(stage.name, "run" if reasons else "reuse", tuple(reasons), found, mark)


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
