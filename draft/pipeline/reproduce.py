"""From what an adapter file says about its making to a pipeline that makes it again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from draft.errors import StageError
from draft.pipeline.document import dump_yaml
from draft.pipeline.provenance import MISSING, parsed
from draft.pipeline.resolve import escaped

_DEFAULTS = {"method": "exact", "normalize": False, "dtype": "same", "format": "auto"}
_WRITING = ("mix", "convert", "resize")
# What a recipe may be of; a conversion and a cut are mixes of one adapter.
_MIXING = ("method", "rank", "energy", "max_error", "components", "blocks", "normalize", "density", "dtype", "format")


@dataclass(frozen=True)
class Reproduction:
    """A pipeline that makes an adapter again.

    Args:
        name: The pipeline's name.
        stages: Name to stage as plain data, those that others need first.
        target: The stage that makes the adapter.
        tables: File name to the prompts, with their columns, that a stage reads from it.
        missing: Full dotted key to what must be given there, in words.
    """

    name: str
    stages: Mapping[str, dict[str, Any]]
    target: str
    tables: Mapping[str, str]
    missing: Mapping[str, str]

    def text(self) -> str:
        """The pipeline as YAML."""
        stages = {name: escaped(stage, (), {}) for name, stage in self.stages.items()}
        lines = [f"# Made by draft reproduce; {self.target}.adapter is the adapter."]
        lines += [f"# To be given: {key}: {what}" for key, what in self.missing.items()]
        return "\n".join(lines) + "\n" + dump_yaml({"name": self.name, "stages": stages})


@dataclass
class _Work:
    """A reproduction in progress.

    Args:
        given: sha256 to a file that somebody has.
        stem: What files beside the pipeline are called.
        model: Stands for every model that is known by its last name alone; empty: none does.
    """

    given: Mapping[str, str]
    stem: str
    model: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)


def reproduce(
    metadata: Mapping[str, str], *, name: str, given: Mapping[str, str] | None = None, model: str = "", stem: str = ""
) -> Reproduction:
    """Build the pipeline out of an adapter's header.

    Args:
        metadata: The header's entries.
        name: The pipeline's name.
        given: sha256 to path of adapter files that need not be made again.
        model: What to use for a model that the file knows by its last name alone; empty: `???`.
        stem: Prompts with columns go into `<stem>.<stage>.jsonl`; empty: the pipeline's name.

    Returns:
        The pipeline.

    Raises:
        StageError: The file does not say how it was made, or a given file is none of its inputs.
    """
    told = {key: parsed(metadata.get(f"draft.{key}")) for key in ("recipe", "pipeline")}
    work = _Work(given or {}, stem or name, model)
    if not _is_story(told):
        old = "draft.config" in metadata
        what = "was written by a version of Draft that did not say enough" if old else "does not say how it was made"
        hint = "Draft's own files do: train and mix write it into the header" if not old else ""
        raise StageError(f"the file {what} (no draft.pipeline or draft.recipe in its header)", hint=hint)
    target = _stage(told, work)
    for digest, path in work.given.items():
        if digest not in work.used:
            raise StageError(f"the file is no input of this adapter (its sha256 is {digest})", where=path)
    return Reproduction(name, work.stages, target, work.tables, work.missing)


def _is_story(told: Mapping[str, Any]) -> bool:
    pipeline, recipe = told.get("pipeline"), told.get("recipe")
    trained = isinstance(pipeline, Mapping) and pipeline.get("kind") == "train" and "model" in pipeline
    mixed = isinstance(recipe, Mapping) and recipe.get("kind") in _WRITING and isinstance(recipe.get("inputs"), list)
    return trained or mixed


def _stage(told: Mapping[str, Any], work: _Work) -> str:
    """Add the stage that a story tells of, after those that it needs; returns its name."""
    pipeline = told["pipeline"] if isinstance(told.get("pipeline"), Mapping) else {}
    mixed = pipeline.get("kind") != "train"
    return _mixed(told["recipe"], pipeline, work) if mixed else _trained(pipeline, work)


def _trained(told: Mapping[str, Any], work: _Work) -> str:
    inputs: Mapping[str, Any] = told.get("inputs") or {}
    sources = {label: _source(each, work) for label, each in inputs.items()}
    name = _free(str(told.get("stage") or "train"), work)
    settings = dict(told["settings"])
    stage: dict[str, Any] = {"kind": "train", "model": _model(told["model"], name, work)}
    stage["prompts"] = _prompts(told, name, work)
    stage |= {"seed": told["seed"], "rewards": told["rewards"]}
    if "init_adapter" in sources:
        stage["init_adapter"] = sources["init_adapter"]
    beneath = [
        {"file": sources[f"base_adapters.{index}"], **each}
        for index, each in enumerate(settings.pop("base_adapters", ()))
    ]
    stage |= {"base_adapters": beneath} if beneath else {}
    work.stages[name] = stage | settings
    for label, each in inputs.items():
        key = label if label == "init_adapter" else f"{label}.file"
        _want(sources[label], each, f"stages.{name}.{key}", work)
    _tell_missing(work.stages[name], f"stages.{name}", work)
    return name


def _mixed(recipe: Mapping[str, Any], told: Mapping[str, Any], work: _Work) -> str:
    inputs = recipe["inputs"]
    sources = [_source(each, work) for each in inputs]
    name = _free(str(told.get("stage") or recipe["kind"]), work)
    settings = dict(told.get("settings") or {})
    named = settings.pop("adapters", None) or []
    labels = named if len(named) == len(inputs) else _labels(inputs)
    if not settings:
        settings = {key: recipe[key] for key in _MIXING if recipe.get(key) not in (None, {}, _DEFAULTS.get(key))}
    seed = told.get("seed", recipe.get("seed")) if settings.get("method") == "dare" else None
    adapters = {
        label: {"from": source, "weight": each["weight"]}
        for label, source, each in zip(labels, sources, inputs, strict=True)
    }
    work.stages[name] = {"kind": "mix", "adapters": adapters, **settings, **({} if seed is None else {"seed": seed})}
    for label, source, each in zip(labels, sources, inputs, strict=True):
        _want(source, each, f"stages.{name}.adapters.{label}.from", work)
    return name


def _source(told: Mapping[str, Any], work: _Work) -> str:
    """A file that somebody has, a reference to a stage that makes it again, or nothing that is known."""
    digest = str(told.get("sha256", ""))
    if digest in work.given:
        work.used.add(digest)
        return work.given[digest]
    if digest in work.made:
        return work.made[digest]
    if not _is_story(told):
        return MISSING
    reference = f"${{out:{_stage(told, work)}.adapter}}"
    work.made[digest] = reference
    return reference


def _want(source: str, told: Mapping[str, Any], key: str, work: _Work) -> None:
    if source == MISSING:
        named = f"{told['name']}, " if told.get("name") else ""
        work.missing[key] = f"the adapter {named}sha256 {told.get('sha256', 'unknown')} (--input FILE)"


def _model(told: Mapping[str, Any], stage: str, work: _Work) -> str:
    if "sha256" not in told:
        return str(told["name"])
    if not work.model:
        work.missing[f"stages.{stage}.model"] = f"the model {told['name']} (--model MODEL)"
    return work.model or MISSING


def _prompts(told: Mapping[str, Any], stage: str, work: _Work) -> Any:
    """Prompts in line, or a table beside the pipeline where they have columns."""
    if told["prompts"] == MISSING:
        key = f"stages.{stage}.prompts.file"
        work.missing[key] = f"the file of the {told.get('count', '')} prompts, too many for a header"
        return {"file": MISSING}
    columns: Mapping[str, list[str]] = told.get("columns") or {}
    if not columns:
        return list(told["prompts"])
    rows = [
        {"prompt": prompt, **{column: values[index] for column, values in columns.items()}}
        for index, prompt in enumerate(told["prompts"])
    ]
    file = f"{work.stem}.{stage}.jsonl"
    work.tables[file] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {"file": file}


def _tell_missing(value: Any, key: str, work: _Work) -> None:
    """Name what the file was not allowed to say: paths and secrets among the options."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name != "prompts":
                _tell_missing(inner, f"{key}.{name}", work)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _tell_missing(inner, f"{key}.{index}", work)
    elif value == MISSING:
        work.missing.setdefault(key, "a path or a secret, which adapter files do not hold")


def _free(name: str, work: _Work) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name) or "stage"
    number, free = 2, name
    while free in work.stages:
        free, number = f"{name}_{number}", number + 1
    return free


def _labels(inputs: list[Mapping[str, Any]]) -> list[str]:
    found: list[str] = []
    for index, each in enumerate(inputs):
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", str(each.get("name") or f"input_{index + 1}")).lstrip("_.-") or "input"
        found.append(f"{label}_{index + 1}" if label in found else label)
    return found


def name_of(path: Path) -> str:
    """A pipeline's name out of an adapter's path."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).lstrip("_.-") + "-again"
