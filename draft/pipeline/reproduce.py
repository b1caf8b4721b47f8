"""From the provenance in an adapter file to a pipeline that reproduces it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from draft.errors import StageError, presentable
from draft.files import safe_name
from draft.marks import hints
from draft.pipeline.document import Keys, dump_yaml, put
from draft.pipeline.fields import default_of
from draft.pipeline.kinds import KINDS, kind_of
from draft.pipeline.kinds.kind import Kind, Recipe
from draft.pipeline.provenance import MISSING, parsed
from draft.pipeline.resolve import escaped

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}")
"""What names and versions of distributions are made of; anything else in a header stays out of the file's comments."""


@dataclass(frozen=True)
class Reproduction:
    """A pipeline that makes an adapter again.

    Args:
        name: The pipeline's name.
        stages: Name to stage as plain data, those that others need first.
        target: The stage that makes the adapter.
        tables: File name to the prompts, with their columns, that a stage reads from it.
        missing: Full dotted key to what must be given there, in words.
        packages: The distributions that its rewards came from, each with its version: `glow-plugin 1.2`.
    """

    name: str
    stages: Mapping[str, dict[str, Any]]
    target: str
    tables: Mapping[str, str]
    missing: Mapping[str, str]
    packages: tuple[str, ...] = ()

    def text(self) -> str:
        """The pipeline as YAML."""
        stages = {name: escaped(stage, (), {}) for name, stage in self.stages.items()}
        lines = [f"# Made by draft reproduce; {self.target}.adapter is the adapter."]
        notes = [f"Its rewards came from: {', '.join(self.packages)}"] if self.packages else []
        notes += [f"To be given: {key}: {what}" for key, what in self.missing.items()]
        # A name in the header must not end the comment that it stands in.
        lines += [presentable(f"# {note}").replace("\n", "\\n") for note in notes]
        return "\n".join(lines) + "\n" + dump_yaml({"name": self.name, "stages": stages})


@dataclass
class _Work:
    """A reproduction in progress.

    Args:
        input_files: sha256 to a file that somebody has.
        stem: What files beside the pipeline are called.
        model: Stands for every model that is known by its last name alone; empty: none does.
    """

    input_files: Mapping[str, str]
    stem: str
    model: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)


def reproduce(
    metadata: Mapping[str, str],
    *,
    name: str,
    input_files: Mapping[str, str] | None = None,
    model: str = "",
    stem: str = "",
) -> Reproduction:
    """Build the pipeline out of an adapter's header.

    Args:
        metadata: The header's entries.
        name: The pipeline's name.
        input_files: sha256 to path of adapter files that need not be made again.
        model: What to use for a model that the file knows by its last name alone; empty: `???`.
        stem: Prompts with columns go into `<stem>.<stage>.jsonl`; empty: the pipeline's name.

    Returns:
        The pipeline.

    Raises:
        StageError: The file does not say how it was made, its training branched from a checkpoint, or a given file is
            none of its inputs.
    """
    provenance = {key: parsed(metadata.get(f"draft.{key}")) for key in ("recipe", "pipeline")}
    continued = parsed(metadata.get("draft.continued"))
    for event in continued if isinstance(continued, list) else ():
        if isinstance(event, dict) and event.get("branch"):
            raise StageError(
                f"the adapter's training branched from a checkpoint after update {event.get('update')}, which its "
                "header does not hold, so it cannot be made again from the header",
                hint="draft inspect shows what changed there (draft.continued)",
            )
    work = _Work(input_files or {}, stem or name, model)
    damaged = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError, OverflowError)
    if not _is_provenance(provenance):
        old = "draft.config" in metadata
        what = "was written by a version of Draft that did not say enough" if old else "does not say how it was made"
        hint = "Draft's own files do: train and mix write it into the header" if not old else ""
        raise StageError(f"the file {what} (no draft.pipeline or draft.recipe in its header)", hint=hint)
    try:
        target = _stage(provenance, work)
        packages = tuple(sorted(work.packages))
        reproduction = Reproduction(name, work.stages, target, work.tables, work.missing, packages)
        reproduction.text()
    except damaged as error:
        raise StageError("what the file says of how it was made is damaged") from error
    used = {work.input_files[digest] for digest in work.used}
    for digest, path in work.input_files.items():
        if path not in used:
            raise StageError(f"the file is no input of this adapter (its sha256 is {digest})", where=path)
    return reproduction


def _is_provenance(provenance: Mapping[str, Any]) -> bool:
    return _kind(provenance) is not None or _recipe(provenance) is not None


def _kind(provenance: Mapping[str, Any]) -> Kind | None:
    """The kind of stage that an adapter is of, where that needs no recipe."""
    pipeline = provenance.get("pipeline")
    kind = kind_of(pipeline) if isinstance(pipeline, dict) and isinstance(pipeline.get("settings"), dict) else None
    return kind if kind is not None and kind.recipe is None else None


def _recipe(provenance: Mapping[str, Any]) -> Recipe | None:
    """How an adapter's recipe becomes a stage; nothing where there is no recipe that can be read."""
    recipe = provenance.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("inputs"), list):
        return None
    recipes = [kind.recipe for kind in KINDS.values() if kind.recipe is not None]
    return next((candidate for candidate in recipes if recipe.get("kind") in candidate.kinds), None)


def _stage(provenance: Mapping[str, Any], work: _Work) -> str:
    """Add the stage that a provenance describes, after those that it needs; returns its name."""
    pipeline = provenance["pipeline"] if isinstance(provenance.get("pipeline"), dict) else {}
    if kind := _kind(provenance):
        unset = [key for key in hints(kind.settings) if default_of(kind.settings, key) == ()]
        settings = {key: value for key, value in pipeline["settings"].items() if value != [] or key not in unset}
        common = {key: pipeline[key] for key in ("seed", "rewards") if key in pipeline}
        stage, inputs = {"kind": kind.name, **common, **settings}, _inputs(pipeline)
        return _add(str(pipeline.get("stage") or kind.name), stage, inputs, work, pipeline)
    recipe, follows = provenance["recipe"], _recipe(provenance)
    stage, keys = follows.stage(recipe, pipeline) if follows else ({}, [])
    inputs = list(zip(keys, recipe["inputs"], strict=True))
    return _add(str(pipeline.get("stage") or recipe["kind"]), stage, inputs, work)


def _inputs(pipeline: Mapping[str, Any]) -> list[tuple[Keys, Mapping[str, Any]]]:
    """Where each file went in, and what is known of it."""
    inputs = pipeline.get("inputs") or ()
    if not isinstance(inputs, Mapping):
        return [(tuple(entry["key"]), entry) for entry in inputs]
    # Before: {"base_adapters.0": ..., "init_adapter": ...}
    parts = {name: [int(part) if part.isdigit() else part for part in name.split(".")] for name in inputs}
    return [((*keys, *(["from"] if len(keys) > 1 else [])), inputs[name]) for name, keys in parts.items()]


def _add(
    proposed: str,
    stage: dict[str, Any],
    inputs: Sequence[tuple[Keys, Mapping[str, Any]]],
    work: _Work,
    pipeline: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Add a stage with its files, model and prompts; returns the name that it gets."""
    sources = [_source(entry, work) for _, entry in inputs]
    name = _free(proposed, work)
    if "model" in pipeline:
        stage["model"] = _model(pipeline["model"], name, work)
    if "prompts" in pipeline:
        stage["prompts"] = _prompts(pipeline, name, work)
    work.packages |= _packages(pipeline.get("packages"))
    stage = work.stages[name] = _without_foreign_code(stage)
    for (keys, entry), source in zip(inputs, sources, strict=True):
        put(stage, keys, source)
        _want(source, entry, ".".join(map(str, ("stages", name, *keys))), work)
    _tell_missing(stage, f"stages.{name}", work)
    return name


def _source(entry: Mapping[str, Any], work: _Work) -> str:
    """A file that somebody has, a reference to a stage that makes it again, or nothing that is known."""
    digest = str(entry.get("sha256", ""))
    if digest in work.input_files:
        work.used.add(digest)
        return work.input_files[digest]
    if digest in work.references:
        return work.references[digest]
    if not _is_provenance(entry):
        return MISSING
    reference = f"${{out:{_stage(entry, work)}.adapter}}"
    work.references[digest] = reference
    return reference


def _want(source: str, entry: Mapping[str, Any], key: str, work: _Work) -> None:
    if source == MISSING:
        named = f"{entry['name']}, " if entry.get("name") else ""
        work.missing[key] = f"the adapter {named}sha256 {entry.get('sha256', 'unknown')} (--input FILE)"


def _packages(recorded: Any) -> set[str]:
    """The distributions of a stage's rewards, of those whose versions count; what cannot be a name is left out."""
    packages = recorded.values() if isinstance(recorded, Mapping) else ()
    named = [(package.get("name"), package.get("version")) for package in packages if isinstance(package, Mapping)]
    return {f"{name} {version}" for name, version in named if version and _WORD.fullmatch(f"{name}{version}")}


def _model(recorded: Mapping[str, Any], stage: str, work: _Work) -> str:
    if "sha256" not in recorded:
        return str(recorded["name"])
    if not work.model:
        work.missing[f"stages.{stage}.model"] = f"the model {recorded['name']} (--model MODEL)"
    return work.model or MISSING


def _prompts(recorded: Mapping[str, Any], stage: str, work: _Work) -> Any:
    """Prompts inline, or a table next to the pipeline if they have columns."""
    if recorded["prompts"] == MISSING:
        key = f"stages.{stage}.prompts.file"
        work.missing[key] = f"the file of the {recorded.get('count', '')} prompts, too many for a header"
        return {"file": MISSING}
    columns: Mapping[str, list[str]] = recorded.get("columns") or {}
    if not columns:
        return list(recorded["prompts"])
    rows = [
        {"prompt": prompt, **{column: values[index] for column, values in columns.items()}}
        for index, prompt in enumerate(recorded["prompts"])
    ]
    file = f"{safe_name(f'{work.stem}.{stage}')}.jsonl"
    work.tables[file] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {"file": file}


def _without_foreign_code(value: Any) -> Any:
    """A stage in which nobody but its reader says what Python runs and what pip installs."""
    if isinstance(value, list):
        return [_without_foreign_code(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    stage = {name: _without_foreign_code(inner) for name, inner in value.items()}
    isolated = stage.get("isolated")
    if isinstance(isolated, Mapping):
        asked = [key for key in ("python", "requirements") if key in isolated] or ["python"]
        stage["isolated"] = {**isolated, **dict.fromkeys(asked, MISSING)}
    elif isolated is not None:
        stage["isolated"] = MISSING
    return stage


def _tell_missing(value: Any, key: str, work: _Work) -> None:
    """Name what the file must not contain: paths and secrets among the options."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name != "prompts":
                _tell_missing(inner, f"{key}.{name}", work)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _tell_missing(inner, f"{key}.{index}", work)
    elif value == MISSING and ".isolated" in key:
        work.missing.setdefault(key, "what runs or installs code, which you must choose yourself")
    elif value == MISSING:
        work.missing.setdefault(key, "a path or a secret, which adapter files do not hold")


def _free(name: str, work: _Work) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name) or "stage"
    number, free = 2, name
    while free in work.stages:
        free, number = f"{name}_{number}", number + 1
    return free


def name_of(path: Path) -> str:
    """A pipeline's name out of an adapter's path."""
    return safe_name(re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).lstrip("_.-")) + "-again"
