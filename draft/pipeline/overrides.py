"""Changes to a pipeline file: the command line's overrides, and in a rehearsal the file's own `rehearsal:`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from draft.errors import ConfigError, DraftError, did_you_mean
from draft.pipeline.document import Document, Entered, Keys, parse_value, value_at
from draft.pipeline.fields import is_labelled, keys_at
from draft.pipeline.inputs import Head
from draft.pipeline.kinds import kind_of
from draft.pipeline.rehearsal import Replacement
from draft.pipeline.resolve import plain_data, readable

REHEARSAL = "rehearsal"
_INDEX = re.compile(r"[0-9]{1,9}")
_SHORTEST = {"stages": 3, "vars": 2}
"""Fewest parts of a key of `rehearsal:`, which has one entry per value."""


@dataclass(frozen=True)
class Applied:
    """What overrides did to a document.

    Args:
        broken: Dotted keys that could not be resolved and are missing for that reason only.
        explicit: Paths of the values that the command line or `rehearsal:` set, themselves or through a variable.
        replaced: What the file's `rehearsal:` changed.
        full_size: In a rehearsal the file as it is, resolved; elsewhere an empty one.
    """

    broken: list[str]
    explicit: frozenset[Keys]
    replaced: list[Replacement]
    full_size: Document


def apply_overrides(
    document: Document, overrides: Sequence[str], errors: list[DraftError], *, rehearse: bool = False
) -> Applied:
    """Apply overrides and resolve interpolations in `document.data`.

    Args:
        document: The file; its data, lines and places are changed.
        overrides: The command line's, ``"dotted.key=value"``.
        errors: Gets what is wrong.
        rehearse: Whether the file's `rehearsal:` is applied too, before the command line; its keys are checked anyway.

    Returns:
        What was done.
    """
    config: dict[str, Any] = {
        key: readable(value, (key,), document, errors) for key, value in document.data.items() if key != REHEARSAL
    }
    planned = list(_planned(config, document, errors))
    before: dict[str, Any] = {}
    explicit: set[Keys] = set()
    moved: list[Keys] = []
    entered: dict[Keys, Entered] = {}
    if rehearse:
        before, _, entered = plain_data(config, document, [])
        for source, parts, value in planned:
            keys = _keys(config, parts)
            _move_lines(document, source, keys)
            try:
                explicit |= _set(config, keys, value, document, errors)
                moved.append(keys)
            except ConfigError as error:
                error.where = document.place(source)
                errors.append(error)
    for text in overrides:
        try:
            explicit |= _override(config, text, document, errors)
        except ConfigError as error:
            error.where = error.where or f"command line, {text!r}"
            errors.append(error)
    explicit |= _through_variables(config, {str(keys[1]) for keys in explicit if keys[0] == "vars" and len(keys) > 1})
    data, broken, document.environment = plain_data(config, document, errors)
    if REHEARSAL in document.data:
        data[REHEARSAL] = document.data[REHEARSAL]
    document.data = data
    replaced = [
        change
        for keys in moved
        if not document.overridden(keys)
        for change in _changes(keys, value_at(before, keys), value_at(data, keys))
    ]
    full_size = Document(document.name, before, environment=entered)
    return Applied(broken, frozenset(explicit), replaced, full_size)


def _planned(config: Any, document: Document, errors: list[DraftError]) -> Iterator[tuple[Keys, list[str], Any]]:
    """The entries of `rehearsal:` whose keys the schema has: the place of each, the parts of its key, its value."""
    entries = document.data.get(REHEARSAL)
    for key, value in entries.items() if isinstance(entries, dict) else ():
        parts = _parts(key)
        try:
            if not all(parts) or len(parts) < _SHORTEST.get(parts[0], 1):
                raise ConfigError(
                    f"{key!r} is not the full key of a value",
                    hint="one dotted key per value, e.g. stages.train.rewards.animal.queries: [cat]",
                )
            _check_key(config, parts, "")
            if parts[0] == "stages":
                _check_stage_key(config, parts)
        except ConfigError as error:
            error.where = document.place((REHEARSAL, key))
            errors.append(error)
        else:
            yield (REHEARSAL, key), parts, value


def _parts(key: str) -> list[str]:
    return re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")


def _override(config: Any, text: str, document: Document, errors: list[DraftError]) -> set[Keys]:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError("an override must be UTF-8 text", where=f"command line, {text!r}") from None
    key, equals, value_text = text.partition("=")
    parts = _parts(key)
    if not equals or not all(parts):
        raise ConfigError(
            f"an override must be key=value (got {text!r})", where="command line", hint="e.g. stages.train.max_steps=20"
        )
    _check_key(config, parts, f"={value_text}")
    keys = _keys(config, parts)
    _forget(document, keys)
    document.places[keys] = f"command line, {text!r}"
    return _set(config, keys, parse_value(value_text), document, errors)


def _set(config: Any, keys: Keys, value: Any, document: Document, errors: list[DraftError]) -> set[Keys]:
    dotted = ".".join(map(str, keys))
    node: Any = config
    for index, part in enumerate(keys[:-1]):
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        inner: Any = _entered(node, part, dotted)
        if not isinstance(inner, dict) and not isinstance(inner, list):
            inside = ".".join(map(str, keys[: index + 1]))
            raise ConfigError(f"cannot set {dotted!r}: {inside} is no mapping (got {inner!r})")
        node = cast("Any", inner)
    _entered(node, keys[-1], dotted, new=True)
    node[keys[-1]] = readable(value, keys, document, errors)
    return set(_leaves(value, keys))


def _entered(node: Any, part: str | int, dotted: str, *, new: bool = False) -> Any:
    """What is under a key or an index."""
    if isinstance(node, dict):
        return None if new else node[part]
    if not isinstance(part, int):
        raise ConfigError(f"cannot set {dotted!r}: a list has no key {part!r}")
    if part >= len(node):
        raise ConfigError(f"cannot set {dotted!r}: list index out of range")
    return node[part]


def _keys(config: Any, parts: list[str]) -> Keys:
    keys: Keys = ()
    node: Any = config
    for part in parts:
        keys = (*keys, int(part) if isinstance(node, list) and _INDEX.fullmatch(part) else part)
        node = value_at(node, keys[-1:])
    return keys


def _forget(document: Document, keys: Keys) -> None:
    for below in [path for path in document.lines if path[: len(keys)] == keys]:
        del document.lines[below]
    document.places.pop(keys, None)


def _move_lines(document: Document, source: Keys, keys: Keys) -> None:
    """Let errors of a value that is set from another place in the file name that place."""
    lines = {path[len(source) :]: line for path, line in document.lines.items() if path[: len(source)] == source}
    _forget(document, keys)
    document.lines |= {(*keys, *inner): line for inner, line in lines.items()}


def _leaves(value: Any, keys: Keys) -> Iterator[Keys]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, key))
    else:
        yield keys


def _changes(keys: Keys, before: Any, after: Any) -> Iterator[Replacement]:
    """What differs, down to the values inside mappings."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _changes((*keys, key), before.get(key), after.get(key))
    elif before != after:
        yield Replacement(".".join(map(str, keys)), before, after)


def _through_variables(config: Any, names: set[str]) -> set[Keys]:
    """The values of stages that are made of one of these variables."""
    stages = config.get("stages")
    return {
        keys
        for keys in _leaves(stages, ("stages",))
        if isinstance(text := value_at({"stages": stages}, keys), str)
        and names & set(re.findall(r"\$\{vars\.(\w+)", text))
    }


def _check_key(config: Any, parts: list[str], tail: str) -> None:
    first, *rest = parts
    known = [key for key in keys_at(Head, (), {}) if key != REHEARSAL]
    if first not in known:
        stages = config.get("stages")
        full = [
            f"stages.{name}.{'.'.join(parts)}{tail}"
            for name, stage in (stages.items() if isinstance(stages, dict) else ())
            if (kind := kind_of(stage)) and first in keys_at(kind.settings, (), {})
        ]
        otherwise = f"the keys here are {', '.join(known)}"
        hint = f"keys are written in full: {full[0]}" if full else did_you_mean(first, known, otherwise=otherwise)
        raise ConfigError(f"unknown key {first!r}", hint=hint)
    for group, noun in (("stages", "stage"), ("vars", "variable")):
        known_names = config.get(group)
        names = list(known_names) if isinstance(known_names, dict) else []
        if first == group and rest and rest[0] not in names:
            hint = did_you_mean(rest[0], names, otherwise=f"the {noun}s are {', '.join(names) or 'none'}")
            raise ConfigError(f"unknown {noun} {rest[0]!r}", hint=hint)


def _check_stage_key(config: Any, parts: list[str]) -> None:
    """Refuse a key that no stage of its kind has, or a label that this one has not.

    An override needs no such look: it is applied, and the schema finds it. What stands under `rehearsal:` is seldom
    applied, and must not be misspelt until then.
    """
    stage = config["stages"][parts[1]]
    kind = kind_of(stage)
    if kind is None:
        return
    for index, part in enumerate(parts[2:], start=2):
        keys = tuple(parts[2:index])
        known = keys_at(kind.settings, keys, {}, aliases=True)
        group = value_at(stage, keys)
        if isinstance(group, dict) and is_labelled(kind.settings, keys) and index + 1 < len(parts):
            known = list(group)
        if known and part not in known and not _INDEX.fullmatch(part):
            hint = did_you_mean(part, known, otherwise=f"the keys here are {', '.join(known)}")
            raise ConfigError(f"unknown key {'.'.join(parts[: index + 1])!r}", hint=hint)
