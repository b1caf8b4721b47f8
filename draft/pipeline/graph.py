"""The edges of a pipeline: references of the form ``${out:stage.output}``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from draft.errors import ConfigError, DraftError, did_you_mean
from draft.pipeline.document import Document, Path
from draft.pipeline.schema import OUTPUTS

_REFERENCE = re.compile(r"\$\{out:([^{}]*)\}")


@dataclass(frozen=True)
class Reference:
    """An output of another stage.

    Args:
        stage: That stage's name.
        output: The output's name.
    """

    stage: str
    output: str

    def __str__(self) -> str:
        return f"${{out:{self.stage}.{self.output}}}"


def parse_reference(text: str) -> Reference | None:
    """The reference that a text is.

    Args:
        text: Any text.

    Returns:
        The reference, or None if the text is none.

    Example:
        >>> parse_reference("${out:train.adapter}")
        Reference(stage='train', output='adapter')
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    stage, _, output = match[1].strip().partition(".")
    return Reference(stage, output)


def check_references(stages: Mapping[str, Any], document: Document) -> list[DraftError]:
    """Check every reference of a file.

    Args:
        stages: Stage name to its plain data, in the file's order.
        document: The file, for places.

    Returns:
        An error for each reference that stands in a wrong place, or names an unknown stage or output, one of the
        wrong type, the stage itself, or a later one.
    """
    errors: list[DraftError] = []
    for name, data in stages.items():
        for path, text in _mentions(data, ("stages", name)):
            if error := _problem(path, text, name, stages):
                error.where = document.place(path)
                errors.append(error)
    return errors


def upstream(data: Any) -> list[str]:
    """The names of the stages that a stage refers to, sorted."""
    found = (parse_reference(text) for _, text in _mentions(data, ()))
    return sorted({reference.stage for reference in found if reference})


def _mentions(data: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if path[-1:] == ("prompts",):  # prompts are taken as they are written
        return
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _mentions(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _mentions(value, (*path, index))
    elif isinstance(data, str) and "${out:" in data:
        yield path, data


def _problem(path: Path, text: str, name: str, stages: Mapping[str, Any]) -> ConfigError | None:
    key = ".".join(map(str, path))
    wanted = _wanted(path)
    if wanted is None:
        return ConfigError(
            f"a reference cannot stand in {key!r} (got {text!r})",
            hint="references stand in adapters.LABEL.from, curves.LABEL, a training's init_adapter and "
            "base_adapters.N.file, and a probe's adapter.from",
        )
    reference = parse_reference(text)
    if reference is None:
        return ConfigError(f"a reference must stand alone (got {text!r})", hint="write ${out:stage.output}")
    if not reference.output:
        return ConfigError(f"a reference names a stage and its output (got {text!r})", hint="write ${out:stage.output}")
    if reference.stage not in stages:
        known = list(stages)
        return ConfigError(
            f"unknown stage {reference.stage!r} (got {text!r})",
            hint=did_you_mean(reference.stage, known, otherwise=f"the stages are {', '.join(known)}"),
        )
    order = list(stages)
    if reference.stage == name:
        return ConfigError(f"stage {name!r} refers to itself (got {text!r})")
    if order.index(reference.stage) > order.index(name):
        chain = _chain(reference.stage, name, stages)
        if chain:
            return ConfigError(f"the stages refer to each other in a circle: {' -> '.join([name, *chain])}")
        return ConfigError(
            f"stage {name!r} refers to the later stage {reference.stage!r} (got {text!r})",
            hint=f"move {reference.stage!r} above {name!r}",
        )
    kind = stages[reference.stage].get("kind") if isinstance(stages[reference.stage], Mapping) else None
    if not isinstance(kind, str) or kind not in OUTPUTS:
        return None  # the unknown kind is an error of its own
    outputs = list(OUTPUTS[kind])
    if reference.output not in outputs:
        return ConfigError(
            f"stage {reference.stage!r} has no output {reference.output!r} (got {text!r})",
            hint=did_you_mean(reference.output, outputs, otherwise=f"its outputs are {', '.join(outputs)}"),
        )
    if reference.output != wanted:
        return ConfigError(f"{key} must be an output {wanted!r} (got {text!r})")
    return None


def _wanted(path: Path) -> str | None:
    match path[2:]:
        case ("adapters", _, "from") | ("adapter", "from") | ("init_adapter",) | ("base_adapters", _, "file"):
            return "adapter"
        case ("curves", _):
            return "metrics"
    return None


def _chain(start: str, goal: str, stages: Mapping[str, Any]) -> list[str]:
    """The names from `start` to `goal` along references, or nothing."""
    paths, seen = [[start]], {start}
    while paths:
        path = paths.pop(0)
        if path[-1] == goal:
            return path
        for name in upstream(stages.get(path[-1], {})):
            if name not in seen:
                seen.add(name)
                paths.append([*path, name])
    return []
