"""When a finished stage may be used again: fingerprints, and the record that every stage folder holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from draft.diffusion.control.schedules import Constant
from draft.files import sha256
from draft.isolation.reward import IsolatedReward
from draft.pipeline.check import CheckedStage
from draft.pipeline.graph import parse_reference
from draft.pipeline.isolated import source_files
from draft.pipeline.schema import VERSIONS, MixStage
from draft.pipeline.sources import source_digest, weights_digest
from draft.rewards.extensions import derived_model, named_models
from draft.rewards.terms import reward_config
from draft.types import Prompts

RECORD = "stage.json"
FORMAT = 1
_WITHOUT_EFFECT = ("checkpoint", "report_to")
"""Settings that change no output, so that changing them redoes nothing."""


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
    """What `stage.json` says about a finished stage.

    Args:
        stage: The stage's name.
        fingerprint: The sha256 of `identity`.
        identity: Everything the result depends on; compared to say what changed.
        outputs: Output name to its files: one, or all of a folder.
        inputs: Reference to the sha256 of what it pointed at.
        metrics: Closing figures.
        versions: Distribution to version, of what took part.
        started: UTC, ISO 8601.
        finished: UTC, ISO 8601.
        seconds: How long the stage ran, the last run only where it was interrupted.
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

    def digest(self, output: str) -> str:
        """One sha256 for an output, of a file or of a whole folder."""
        files = self.outputs.get(output, ())
        if len(files) == 1:
            return files[0].sha256
        return hashlib.sha256("".join(f"{file.path}\0{file.sha256}\0" for file in files).encode()).hexdigest()


def identity(stage: CheckedStage, upstream: Mapping[str, str]) -> dict[str, Any]:
    """Everything a stage's result depends on, as plain JSON.

    Args:
        stage: The stage.
        upstream: Fingerprints of the stages it refers to, by name.

    Returns:
        Its kind and version, resolved settings, seed, prompts, rewards with the sha256 of their source and digests
        of the models they name, the stage's model, adapter files from outside, and `upstream`.
    """
    settings = {key: value for key, value in asdict(stage.config).items() if key not in _WITHOUT_EFFECT}
    for elsewhere in ("kind", "seed", "prompts", "rewards", "model"):
        settings.pop(elsewhere, None)
    for label, adapter in settings.get("adapters", {}).items():
        source = stage.files[f"adapters.{label}"]
        own = {"from": _file_identity(source)}
        own |= {"weight": adapter["weight"]} if "weight" in adapter else {}
        if adapter.get("schedule", asdict(Constant())) != asdict(Constant()):
            own["schedule"] = adapter["schedule"]
        settings["adapters"][label] = own
    if settings.get("method") is None:  # a stage that generates without one
        settings.pop("method", None)
    if settings.pop("init_adapter", None):
        settings["init_adapter"] = _file_identity(stage.files["init_adapter"])
    if beneath := settings.pop("base_adapters", ()):
        settings["base_adapters"] = [
            {"file": _file_identity(stage.files[f"base_adapters.{index}"]), "weight": each["weight"]}
            for index, each in enumerate(beneath)
        ]
    if settings.get("adapter"):
        settings["adapter"]["from"] = _file_identity(stage.files["adapter"])
        settings["adapter"].pop("from_")
    for label in settings.get("curves", {}):
        settings["curves"][label] = _file_identity(stage.files[f"curves.{label}"])
    if stage.compared:
        settings["methods"] = {
            label: {key: value for key, value in asdict(contender).items() if key not in _WITHOUT_EFFECT}
            for label, contender in stage.compared.contenders.items()
        }
        settings["measure"] = {key: settings["measure"][key] for key in ("images_per_prompt", "batch_size")}
    found: dict[str, Any] = {
        "kind": stage.config.kind,
        "version": VERSIONS[stage.config.kind],
        "settings": settings,
        "rewards": {term.label: reward_config(term) for term in stage.every_term},
        "sources": {
            ".".join((term.label, *keys)): source_digest(file)
            for term in stage.every_term
            for keys, file in source_files(term.reward).items()
        },
        "reward_models": _reward_models(stage),
        "upstream": dict(upstream),
    }
    if stage.prompts:
        found |= {"seed": stage.seed, "prompts": _prompts_digest(stage.prompts)}
    if stage.config.kind == "strip":
        found.pop("seed")  # it has its own list of them
    if isinstance(stage.config, MixStage) and stage.config.method == "dare":
        found["seed"] = stage.seed
    if stage.compared:
        measured = [term.label for term in stage.compared.terms]
        found |= {"held_out": _prompts_digest(stage.compared.prompts), "measured": measured}
    if stage.model:
        found |= {"model": _model_identity(stage.model)}
    return json.loads(json.dumps(found))


def fingerprint(found: Mapping[str, Any]) -> str:
    """The sha256 of an identity."""
    return _digest(found)


def read_record(folder: Path) -> StageRecord | None:
    """A stage folder's record, or None if it has none that can be read."""
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            return None
        outputs = {name: tuple(FileRecord(**file) for file in files) for name, files in data.pop("outputs").items()}
        return StageRecord(outputs=outputs, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no record, or one that is not ours: the stage runs again


def write_record(record: StageRecord, folder: Path) -> None:
    """Write a stage folder's record."""
    data = {"format": FORMAT, **asdict(record)}
    (folder / RECORD).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def record_outputs(folder: Path, outputs: Mapping[str, str]) -> dict[str, tuple[FileRecord, ...]]:
    """Measure the outputs of a stage that has just run.

    Args:
        folder: Its folder.
        outputs: Output name to path in the folder.

    Returns:
        Output name to file records; an output that is not there has none.
    """
    found = {}
    for name, path in outputs.items():
        target = folder / path
        files = sorted(file for file in target.rglob("*") if file.is_file()) if target.is_dir() else [target]
        found[name] = tuple(
            FileRecord(file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns, sha256(file))
            for file in files
            if file.is_file()
        )
    return found


def damage(record: StageRecord, folder: Path) -> str:
    """What is wrong with a finished stage's outputs: ``""``, or ``"output missing: ..."``, ``"output changed: ..."``.

    Size and time are looked at first; the content only where the time differs, as after a copy.
    """
    for files in record.outputs.values():
        for file in files:
            try:
                stat = os.stat(folder / file.path)
            except OSError:
                return f"output missing: {file.path}"
            same = stat.st_size == file.size
            if not same or (stat.st_mtime_ns != file.mtime_ns and sha256(folder / file.path) != file.sha256):
                return f"output changed: {file.path}"
    return ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes two identities differ, in words: ``"config changed: learning_rate 0.0001 -> 0.0002"``."""
    reasons = []
    if (old.get("kind"), old.get("version")) != (new.get("kind"), new.get("version")):
        reasons.append(
            f"stage kind changed: {old.get('kind')} {old.get('version')} -> {new.get('kind')} {new.get('version')}"
        )
    for part, noun in (("settings", "config"), ("rewards", "rewards")):
        before, after = _flat(old.get(part)), _flat(new.get(part))
        changed = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
        shown = [f"{key} {_words(before, key)} -> {_words(after, key)}" for key in changed[:3]]
        more = [f"and {len(changed) - 3} more"] if len(changed) > 3 else []
        if changed:
            reasons.append(f"{noun} changed: {', '.join(shown + more)}")
    if old.get("seed") != new.get("seed"):
        reasons.append(f"seed changed: {old.get('seed')} -> {new.get('seed')}")
    for part, text in (
        ("prompts", "prompts changed"),
        ("model", "model changed"),
        ("held_out", "held-out prompts changed"),
        ("measured", "measures changed"),
    ):
        if old.get(part) != new.get(part):
            reasons.append(text)
    for part, text in (("sources", "reward source changed"), ("reward_models", "reward model changed")):
        before, after = old.get(part) or {}, new.get(part) or {}
        edited = [label for label in after if label in before and before[label] != after[label]]
        if edited:
            reasons.append(f"{text}: {', '.join(edited)}")
    before, after = old.get("upstream") or {}, new.get("upstream") or {}
    changed = [name for name in after if before.get(name) != after[name]]
    if changed:
        reasons.append(f"upstream changed: {', '.join(changed)}")
    return reasons


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _prompts_digest(prompts: Prompts) -> str:
    return _digest({"prompts": list(prompts), "columns": {name: prompts.column(name) for name in prompts.columns}})


def _file_identity(source: str) -> str:
    if parse_reference(source):
        return source
    path = Path(source)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    # Not sha256(path): the fingerprints of earlier runs hold this.
    return "sha256:" + _digest([sha256(file) for file in files])


def _model_identity(path: str) -> str:
    """A hub id, or a local model by its weights, so that it may move and must not change.

    A derived model counts by its folder's name, which stands for its weights before they are made.
    """
    if (derived := derived_model(path)) is not None:
        return f"derived:{derived.path.name}"
    return f"sha256:{weights_digest(Path(path))}" if Path(path).exists() else path


def _reward_models(stage: CheckedStage) -> dict[str, str]:
    """The models on this machine that options of rewards name, by the option's key."""
    named = named_models() if stage.every_term else {}
    found = {}
    for term in stage.every_term:
        there = term.reward.isolated.models if isinstance(term.reward, IsolatedReward) else {}
        for option, value in _flat(term.reward.model_dump(mode="json")).items():
            path = named[value].path if isinstance(value, str) and value in named else value
            path = Path(there[option]) if option in there else path
            if isinstance(path, Path) or (isinstance(path, str) and Path(path).is_absolute()):
                found[f"{term.label}.{option}"] = _model_identity(str(path))
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            key: inner
            for name, each in value.items()
            for key, inner in _flat(each, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    return {prefix: value} if prefix else {}


def _words(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "nothing"
    value = values[key]
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
