"""Run a pipeline: stage by stage, reusing what still holds, never leaving half a result that looks whole."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from draft.errors import StageError, shortened
from draft.files import locked, remove_leftovers, write_text
from draft.isolation.reward import IsolatedReward
from draft.pipeline import cache
from draft.pipeline.allowed import load_allowed
from draft.pipeline.check import Pipeline
from draft.pipeline.document import Keys, dump_yaml
from draft.pipeline.ends import begin, settle_stage, tidy
from draft.pipeline.folders import publish
from draft.pipeline.interrupt import RUNS, noting, rehearse_command, resumable, resume_command, sigterm
from draft.pipeline.isolated import foreign_versions, unchecked
from draft.pipeline.kinds.kind import CheckedStage, Executor, Job
from draft.pipeline.observers import Observers
from draft.pipeline.partial import PARTIAL
from draft.pipeline.plan import Step, make_plan
from draft.pipeline.provenance import adapter_metadata, without_folders
from draft.pipeline.rehearsal import listing
from draft.pipeline.resolve import escaped, texts
from draft.pipeline.warned import WARNINGS, recording_warnings
from draft.progress import Progress, Silent, duration
from draft.report.withheld import withholding, without_withheld
from draft.rewards.parts import walk_reward


@dataclass(frozen=True)
class StageResult:
    """What became of a stage.

    Args:
        name: The stage.
        action: ``"reused"``, ``"ran"``, ``"left out"``; in a dry run what the plan says.
        outputs: Output name to path.
        metrics: Closing figures.
        seconds: How long it ran now.
    """

    name: str
    action: str
    outputs: Mapping[str, Path] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class RunResult:
    """What became of a pipeline.

    Args:
        name: The pipeline.
        folder: Where its stages' folders are.
        stages: One result per stage, in order.
    """

    name: str
    folder: Path
    stages: tuple[StageResult, ...]

    def __getitem__(self, stage: str) -> StageResult:
        """The result of one stage."""
        return next(result for result in self.stages if result.name == stage)


def run_pipeline(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    runs_dir: Path = RUNS,
    dry_run: bool = False,
    from_stage: str | None = None,
    only: str | None = None,
    force: bool = False,
    fresh: bool = False,
    branch_from: str | None = None,
    rehearse: bool = False,
    trust: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
    executors: Mapping[str, Executor] = MappingProxyType({}),
) -> RunResult:
    """Run a pipeline file.

    Args:
        file: A YAML file, or the name of one that ships with Draft.
        overrides: Changes as full dotted keys.
        runs_dir: The results are in `runs_dir`/<pipeline's name>/, those of a rehearsal in `<name>-rehearsal/`.
        dry_run: Only say what would happen; nothing is written.
        from_stage: Run this stage and all after it again.
        only: Run this stage alone.
        force: Run every stage again.
        fresh: Delete interrupted runs instead of continuing them.
        branch_from: `UPDATE` or `STAGE:UPDATE`: begin that stage at its checkpoint after the update, with whatever
            settings it has now.
        rehearse: Run it at small scale on the embedded models; tells what was replaced.
        trust: Allow what the file's `isolated` runs and installs, and remember that; otherwise the user must have
            allowed it before.
        verify: Read all results that could be used again and compare them with their recorded sha256.
        progress: Who hears about it; None: nobody.
        executors: Stage kind to what runs it instead.

    Returns:
        What was done.

    Raises:
        DraftError: Something the user can fix; if a stage had begun, with a note on how to resume.
        KeyboardInterrupt: It was interrupted, with such a note.
    """
    reporter = Silent() if progress is None else progress
    pipeline = load_allowed(
        file, overrides, reporter, rehearse=rehearse, trust=trust, needed=not dry_run, build=not dry_run
    )
    if pipeline.replacements:
        reporter.say(listing(pipeline.replacements))
    runs = Path(runs_dir) / pipeline.name

    def plan() -> list[Step]:
        with _placing(runs), suppress(FileNotFoundError, NotADirectoryError):
            os.stat(runs)
        return make_plan(
            pipeline,
            runs,
            from_stage=from_stage,
            only=only,
            force=force,
            fresh=fresh,
            branch_from=branch_from,
            verify=verify,
        )

    if dry_run:
        for line in unchecked(pipeline.terms):
            reporter.say(line)
        steps = plan()
        for step in steps:
            reporter.say(str(step))
        return RunResult(pipeline.name, runs, tuple(StageResult(s.name, s.action) for s in steps))
    command = functools.partial(resume_command, file, runs_dir=runs_dir, only=only, rehearse=rehearse)
    resume = command(overrides, branch_from=branch_from)
    offer = "" if rehearse else rehearse_command(file, runs_dir=runs_dir)
    plan()  # so that its errors come before anything is written
    with _placing(runs):
        runs.mkdir(parents=True, exist_ok=True)
    busy = locked(runs, who="run", hint="wait for it, or give this one another --runs-dir")
    with resumable(resume, runs), busy, sigterm():
        remove_leftovers(runs)
        for stage in pipeline.stages.values():
            settle_stage(stage, runs)
        steps = plan()
        write_text(runs / "config.yaml", dump_yaml(resolved(pipeline)))
        hooks = Observers(reporter) if any(step.action in ("run", "continue") for step in steps) else None
        results = []
        for number, step in enumerate(steps, start=1):
            stage = pipeline.stages[step.name]
            label = f"[{number}/{len(steps)}] {step.name}"
            if step.action == "skip":
                results.append(StageResult(step.name, "left out"))
                continue
            if step.action == "reuse":
                reporter.say(f"{label}: reused" + (f" ({'; '.join(step.reasons)})" if step.reasons else ""))
                record = cache.read_record(runs / step.name)
                results.append(StageResult(step.name, "reused", outputs(stage, runs), record.metrics if record else {}))
                continue
            word = "resumes" if step.action == "continue" else "runs"
            reporter.say(f"{label}: {word} ({'; '.join(step.reasons)})")
            rate = getattr(stage.config, "learning_rate", None)
            slower = [f"stages.{step.name}.learning_rate={rate / 2:g}"] if rate else []
            branch = functools.partial(command, [*overrides, *slower])
            mended = functools.partial(command, overrides)
            folder = runs / f"{step.name}{PARTIAL}"
            with noting(resume, step.name, folder, rehearsal=offer, branch=branch, mended=mended):
                result = _run_stage(pipeline, stage, step, runs, reporter, executors, hooks)
            reporter.say(f"{label}: done in {duration(result.seconds)}")
            results.append(result)
    return RunResult(pipeline.name, runs, tuple(results))


@contextmanager
def _placing(runs: Path) -> Iterator[None]:
    """Blame `--runs-dir` for a folder of results that cannot be."""
    try:
        yield
    except OSError as error:
        what = f"cannot write results there: {error.strerror} (got {shortened(str(runs))!r})"
        raise StageError(what, where="--runs-dir", hint="give another --runs-dir") from None


def outputs(stage: CheckedStage, runs: Path) -> dict[str, Path]:
    """Output name to path of a finished stage."""
    return {name: runs / stage.name / path for name, path in stage.outputs.items()}


def resolved(pipeline: Pipeline) -> dict[str, Any]:
    """A pipeline as plain data without variables, that loads again to the same pipeline from anywhere."""
    stages = {name: _written(stage) for name, stage in pipeline.stages.items()}
    seed = pipeline.environment.get(("seed",))
    return {"name": pipeline.title, "seed": seed.source if seed else pipeline.seed, "stages": stages}


def _written(stage: CheckedStage) -> dict[str, Any]:
    written: dict[str, Any] = escaped(dict(stage.data), (), stage.environment)
    return written


def _shown(pipeline: Pipeline, stage: CheckedStage) -> str:
    """The settings of a stage as pages show them: like in a file, and paths without the folders of this machine."""
    entered = stage.environment.get(("seed",))
    settings = {stage.name: _written(stage), "seed": entered.source if entered else stage.seed}
    return dump_yaml(without_folders({**settings, **_rehearsed(pipeline)}, pipeline.file.parent))


def _rehearsed(pipeline: Pipeline) -> dict[str, Any]:
    """What a rehearsal replaced in the file, to be kept with the figures: they are not those of the file's settings."""
    changes = {}
    for change in pipeline.replacements:
        keys = tuple(int(part) if part.isdecimal() else part for part in change.key.split("."))
        # What is replaced is shown beside what replaces it, so its secrets count, too.
        before = escaped(change.before, keys, pipeline.replaced_environment)
        changes[change.key] = {"before": before, "after": escaped(change.after, keys, pipeline.environment)}
    return {"rehearsal": changes} if changes else {}


def _run_stage(
    pipeline: Pipeline,
    stage: CheckedStage,
    step: Step,
    runs: Path,
    reporter: Progress,
    executors: Mapping[str, Executor],
    hooks: Observers | None,
) -> StageResult:
    partial = runs / f"{stage.name}{PARTIAL}"
    begun = begin(stage, step, partial, reporter)
    files, inputs = _inputs(pipeline, stage, runs)
    job = Job(
        stage=stage,
        folder=partial,
        files=files,
        progress=reporter,
        title=pipeline.title,
        config_text=_shown(pipeline, stage),
        metadata=adapter_metadata(stage, step.identity, files),
        branch=step.branch,
    )
    if hooks is not None:
        hooks.started(stage.name, partial)
    started, clock = _now(), time.monotonic()
    try:
        entered = {**pipeline.environment, **pipeline.replaced_environment}
        withheld = withholding(texts(entered), (runs.resolve(), pipeline.file.parent))
        with recording_warnings(partial) as warned, withheld:
            metrics = dict((executors.get(stage.kind.name) or stage.kind.executor())(job))
            warned = without_withheld(list(warned))
    finally:
        reporter.stop()
    seconds = time.monotonic() - clock
    missing = [path for path in stage.outputs.values() if not (partial / path).exists()]
    if missing:
        os.stat(partial)  # where somebody has removed the folder, that is the reason
        raise StageError(f"stage {stage.name!r} ended without writing {', '.join(missing)}")
    record = cache.StageRecord(
        stage=stage.name,
        fingerprint=step.fingerprint,
        identity=step.identity,
        outputs=cache.record_outputs(partial, stage.outputs, {**stage.kind.extras, **stage.kind.byproducts}),
        inputs=inputs,
        metrics=metrics,
        versions=_versions(stage),
        started=started,
        finished=_now(),
        seconds=round(seconds, 3),
        changes=begun.changes,
        branch=begun.branch,
        warnings=tuple(warned),
    )
    (partial / WARNINGS).unlink(missing_ok=True)
    cache.write_record(record, partial)
    kept = step.kept.get(stage.name)
    publish(partial, runs / stage.name, keep=runs / kept if kept else None)
    tidy(stage, runs)
    done = outputs(stage, runs)
    if hooks is not None:
        hooks.finished(stage.name, done, metrics)
    return StageResult(stage.name, "ran", done, metrics, seconds)


def _inputs(pipeline: Pipeline, stage: CheckedStage, runs: Path) -> tuple[dict[Keys, Path], dict[str, str]]:
    """Where the stage has a file, to that file, and reference to the sha256 of what it points at."""
    files, digests = {}, {}
    for file in stage.files:
        if (reference := file.reference) is None:
            files[file.keys] = Path(file.source)
            continue
        files[file.keys] = runs / reference.stage / pipeline.stages[reference.stage].outputs[reference.output]
        record = cache.read_record(runs / reference.stage)
        digests[file.source] = record.digest(reference.output) if record else ""
    return files, digests


def _versions(stage: CheckedStage) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    names = {"draft-diffusion", "torch", "diffusers", "peft"}
    rewards = [reward for term in stage.every_term for _, reward in walk_reward(term.reward)]
    in_process = [reward for reward in rewards if not isinstance(reward, IsolatedReward)]
    modules = {type(reward).__module__.partition(".")[0] for reward in in_process}
    distributions = packages_distributions() if modules else {}
    names |= {name for module in modules for name in distributions.get(module, ())}
    versions = {}
    for name in sorted(names):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions | foreign_versions(stage.every_term)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
