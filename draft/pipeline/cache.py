"""The record that every finished stage's folder holds, and whether its outputs are still what they were."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from draft.digests import while_untouched
from draft.files import sha256

RECORD = "stage.json"
FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """One output file as it was when its stage finished.

    Args:
        path: Relative to the stage's folder, with forward slashes.
        size: Bytes.
        mtime_ns: Time of the last change, nanoseconds.
        sha256: Of the content.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class StageRecord:
    """What `stage.json` records about a finished stage.

    Args:
        stage: The stage's name.
        fingerprint: The sha256 of `identity`.
        identity: Everything the result depends on; compared to say what changed.
        outputs: Name of an output, or of what else belongs to the results, to its files: one, or all of a folder.
        inputs: Reference to the sha256 of what it pointed at.
        metrics: Closing figures.
        versions: Distribution to version, of what took part.
        started: UTC, ISO 8601.
        finished: UTC, ISO 8601.
        seconds: How long the stage ran, the last run only where it was interrupted.
        changes: Settings that decide about rounding alone and were changed where it was interrupted.
        branch: The sha256 of the checkpoint of another run that it began at; empty: it did not.
        warnings: What Draft warned of while it ran.
    """

    stage: str
    fingerprint: str
    identity: Mapping[str, Any]
    outputs: Mapping[str, tuple[FileRecord, ...]]
    inputs: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    changes: tuple[str, ...] = ()
    branch: str = ""
    warnings: tuple[str, ...] = ()

    def digest(self, output: str) -> str:
        """One sha256 for an output, of a file or of a whole folder."""
        files = self.outputs.get(output, ())
        if len(files) == 1:
            return files[0].sha256
        return hashlib.sha256("".join(f"{file.path}\0{file.sha256}\0" for file in files).encode()).hexdigest()


def read_record(folder: Path) -> StageRecord | None:
    """A stage folder's record, or None if it has none that can be read."""
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT or not isinstance(data["identity"], dict):
            return None
        outputs = {name: tuple(FileRecord(**file) for file in files) for name, files in data.pop("outputs").items()}
        texts = {key: tuple(data.get(key, ())) for key in ("changes", "warnings")}
        return StageRecord(outputs=outputs, **{**data, **texts})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no record, or one that is not ours: the stage runs again


def write_record(record: StageRecord, folder: Path) -> None:
    """Write a stage folder's record."""
    data = {"format": FORMAT, **asdict(record)}
    (folder / RECORD).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def record_outputs(
    folder: Path, outputs: Mapping[str, str], extras: Mapping[str, str] = MappingProxyType({})
) -> dict[str, tuple[FileRecord, ...]]:
    """Measure the outputs of a stage that has just run.

    Args:
        folder: Its folder.
        outputs: Output name to path in the folder.
        extras: The same of what else belongs to the results, and need not be there.

    Returns:
        Name to file records; an output that is not there has none. Checkpoints are no results.
    """
    records = {}
    for name, path in {**outputs, **extras}.items():
        target = folder / path
        files = sorted(file for file in target.rglob("*") if file.is_file()) if target.is_dir() else [target]
        measured = tuple(
            FileRecord(file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns, sha256(file))
            for file in files
            if file.is_file() and file.suffix != ".ckpt"
        )
        if measured or name in outputs:
            records[name] = measured
    return records


def damage(
    record: StageRecord, folder: Path, *, content: bool = False, names: Callable[[str], bool] = lambda name: True
) -> str:
    """What is wrong with a finished stage's results: ``""``, or ``"output missing: ..."``, ``"output changed: ..."``.

    Args:
        record: The stage's record.
        folder: Its folder.
        content: Whether to compare the sha256 of every file. Otherwise size and time are looked at first, and the
            content only where the time differs, as after a copy.
        names: Which outputs are looked at.

    Returns:
        The first thing that is wrong, in words.
    """
    for file in (file for name, files in record.outputs.items() if names(name) for file in files):
        path = folder / file.path
        try:
            state = os.stat(path)
        except OSError:
            return f"output missing: {file.path}"
        try:
            read = content or state.st_mtime_ns != file.mtime_ns
            if state.st_size != file.size or (read and _content(path) != file.sha256):
                return f"output changed: {file.path}"
        except OSError as error:
            return f"output cannot be read: {file.path} ({error.strerror or error})"
    return ""


@while_untouched
def _content(path: Path) -> str:
    """The sha256 of a file: a plan is made twice by a run, before and after the lock is taken."""
    return sha256(path)
