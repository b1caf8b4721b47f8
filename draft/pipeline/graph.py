"""The edges of a pipeline: which stage may refer to which, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from draft.errors import ConfigError, DraftError, did_you_mean
from draft.pipeline.document import Document, Keys
from draft.pipeline.fields import output_at, places_of_files
from draft.pipeline.kinds import KINDS, kind_of
from draft.pipeline.references import mentions, parse_reference, upstream


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
        if kind_of(data) is None:
            continue  # the unknown kind is an error of its own
        for keys, text in mentions(data):
            if error := _problem(keys, text, name, stages):
                error.where = document.place(("stages", name, *keys))
                errors.append(error)
    return errors


def _problem(keys: Keys, text: str, name: str, stages: Mapping[str, Any]) -> ConfigError | None:
    kind = KINDS[stages[name]["kind"]]
    key = ".".join(map(str, ("stages", name, *keys)))
    output = output_at(kind.settings, keys)
    if not output:
        known = ", ".join(places_of_files(kind.settings)) or "none of its keys"
        hint = f"in a stage of kind {kind.name}, references stand in {known}"
        return ConfigError(f"a reference cannot stand in {key!r} (got {text!r})", hint=hint)
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
    source = kind_of(stages[reference.stage])
    if source is None:
        return None  # the unknown kind is an error of its own
    outputs = list(source.outputs)
    if reference.output not in outputs:
        return ConfigError(
            f"stage {reference.stage!r} has no output {reference.output!r} (got {text!r})",
            hint=did_you_mean(reference.output, outputs, otherwise=f"its outputs are {', '.join(outputs)}"),
        )
    if reference.output != output:
        return ConfigError(f"{key} must be an output {output!r} (got {text!r})")
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
