"""The first and last steps of a stage's folder, each of which a crash may interrupt without losing anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from draft.files import remove_leftovers, sha256
from draft.pipeline.folders import discard, settle
from draft.pipeline.kinds.kind import CheckedStage
from draft.pipeline.partial import (
    BEGINNING,
    PARTIAL,
    Begun,
    inert_changes,
    inert_settings,
    is_begun,
    read_begun,
    remove_begun,
    write_begun,
)
from draft.pipeline.plan import Step
from draft.progress import Progress


def settle_stage(stage: CheckedStage, runs: Path) -> None:
    """Finish what a crash has left of a stage's last steps and first ones."""
    partial = runs / f"{stage.name}{PARTIAL}"
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        remove_leftovers(folder)
    settle(runs / stage.name, others=[partial, partial.with_name(f"{partial.name}{BEGINNING}")])
    if is_begun(runs / stage.name):
        tidy(stage, runs)


def tidy(stage: CheckedStage, runs: Path) -> None:
    """Remove from a finished stage's folder what only an interrupted run goes on from."""
    stage.kind.tidy(runs / stage.name, stage.config)
    remove_begun(runs / stage.name)  # last, so that its being there says that this is still to do


def begin(stage: CheckedStage, step: Step, partial: Path, reporter: Progress) -> Begun:
    """Make the folder that a stage writes to, or go on in it; what is there and does not fit is moved aside."""
    final = partial.with_name(stage.name)
    if os.path.lexists(partial) and (step.action == "run" or step.carried or not partial.is_dir()):
        if kept := step.kept.get(partial.name):
            partial.rename(partial.with_name(kept))
            reporter.say(f"{stage.name}: the interrupted run is kept in {partial.with_name(kept)}")
        else:
            discard(partial)  # empty, or to be forgotten
    begun = read_begun(partial) or Begun(step.fingerprint, step.identity, inert_settings(stage))
    changes = (*begun.changes, *inert_changes(begun, stage))
    branch = sha256(step.branch) if step.branch else begun.branch
    begun = Begun(step.fingerprint, step.identity, inert_settings(stage), changes, branch)
    if partial.exists():
        write_begun(partial, begun)
        return begun
    # Under another name until it is whole: half a copy of checkpoints would pass for a damaged run of its own.
    beginning = partial.with_name(f"{partial.name}{BEGINNING}")
    if beginning.exists():
        discard(beginning)
    beginning.mkdir()
    for name in step.carried:  # copied: the finished stage stays until the longer one is done
        _copy(final / name, beginning / name)
    write_begun(beginning, begun)
    beginning.rename(partial)
    return begun


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all that is in it, where there is one; the first thing that fails is the error."""
    if source.is_dir():
        target.mkdir()
        for path in sorted(source.iterdir()):
            _copy(path, target / path.name)
    elif source.exists():
        shutil.copy2(source, target)
