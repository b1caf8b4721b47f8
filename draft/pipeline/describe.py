"""The schema as people and editors read it: the keys at a place, a table of all keys, a JSON Schema."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import TypeAdapter

from draft.errors import DraftError
from draft.isolation.settings import Isolation
from draft.marks import ByKind
from draft.pipeline.document import Path
from draft.pipeline.schema import KINDS, OUTPUTS, AdapterInput, Head, PipelineFile
from draft.rewards.discovery import reward_entries
from draft.rewards.loading import find_reward
from draft.rewards.words import type_in_words


def keys_at(kind: Any, path: Path, data: Any) -> list[str]:
    """The keys that a type allows at a path inside it.

    Args:
        kind: A dataclass of the schema.
        path: Where to look, from the value that `kind` describes.
        data: That value as plain data; where there are alternatives, its `kind` keys choose among them.

    Returns:
        Keys in the schema's order.
    """
    kinds = [kind]
    for part in path:
        kinds = [inner for outer in kinds for inner in _inside(outer, part)]
        data = data.get(part) if isinstance(data, dict) else None
    found = [option for outer in kinds for option in _alternatives(outer) if dataclasses.is_dataclass(option)]
    chosen = data.get("kind") if isinstance(data, dict) else None
    matching = [option for option in found if _tag(option) in (None, chosen)] or found
    return list(dict.fromkeys(name for option in matching for name in _hints(option)))


def kinds_at(kind: Any, path: Path) -> list[str]:
    """The alternatives that a type has at a path inside it, by their `kind`."""
    kinds = [kind]
    for part in path:
        kinds = [inner for outer in kinds for inner in _inside(outer, part)]
    options = [option for outer in kinds for option in _alternatives(outer) if dataclasses.is_dataclass(option)]
    return [tag for tag in map(_tag, options) if tag]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of pipeline files, for editors; descriptions are those of the docstrings."""
    schema = TypeAdapter(PipelineFile).json_schema(by_alias=True)
    classes = {cls.__name__: cls for cls in _classes(PipelineFile)}
    for name, definition in [(PipelineFile.__name__, schema), *schema.get("$defs", {}).items()]:
        if name in classes:
            described = descriptions(classes[name])
            definition["description"] = headline(classes[name])
            for key, entry in definition.get("properties", {}).items():
                entry.setdefault("description", described.get(key, ""))
                if key == "rewards":
                    entry["properties"] = _installed_rewards()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Draft pipeline"}


def _installed_rewards() -> dict[str, Any]:
    """The options of the installed rewards; a label that says `use` may have another reward's."""
    own = {
        "use": {"type": "string", "description": "The reward's name; the label where it is left out."},
        "weight": {"type": "number", "default": 1.0, "description": "Its factor in the sum; negative asks for less."},
        "device": {"type": "string", "default": "", "description": "Where to load it; empty: where the images are."},
        "isolated": _isolated_schema(),
    }
    found: dict[str, Any] = {}
    for entry in reward_entries():
        try:
            schema = find_reward(entry.name).model_json_schema()
        except DraftError:
            continue  # broken or twice there: said where it is used, and editors need the rest
        if "$defs" not in schema:
            schema["properties"] = {**own, **schema.get("properties", {})}
            found[entry.name] = {"anyOf": [{"type": "object", "required": ["use"]}, {"type": "null"}, schema]}
    return found


def _isolated_schema() -> dict[str, Any]:
    schema = TypeAdapter(Isolation).json_schema()
    described = descriptions(Isolation)
    for key, entry in schema["properties"].items():
        entry["description"] = described[key]
    return schema | {"description": headline(Isolation)}


def key_tables() -> str:
    """All keys of a pipeline file as Markdown tables, one per stage kind; `docs/pipelines.md` holds them."""
    parts = ["### The file\n\n" + _table(Head, "")]
    for name, kind in KINDS.items():
        outputs = ", ".join(f"`{output}` ({path})" for output, path in OUTPUTS[name].items())
        parts.append(f"### `kind: {name}`\n\n{headline(kind)}\n\nOutputs: {outputs}.\n\n{_table(kind, '')}")
    parts.append(f"### An adapter of a stage\n\n{headline(AdapterInput)}\n\n{_table(AdapterInput, 'adapters.LABEL.')}")
    parts.append(f"### `isolated` of a reward\n\n{headline(Isolation)}\n\n{_table(Isolation, 'isolated.')}")
    return "\n\n".join(parts) + "\n"


BAR = "\\|"
"""A bar inside a cell of a Markdown table."""


def headline(cls: type[Any]) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def descriptions(cls: type[Any]) -> dict[str, str]:
    """Key to description, from the `Args:` of a class and of those it extends."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")[2]
        for match in re.finditer(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            found[match[1].rstrip("_")] = " ".join(match[2].split())
    return found


def _table(cls: type[Any], prefix: str) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, meaning in _rows(cls, prefix):
        rows.append(f"| `{key}` | {kind} | {default} | {meaning.replace('|', BAR)} |")
    return "\n".join(rows)


def _rows(cls: type[Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    described = descriptions(cls)
    values = {field.name: field for field in dataclasses.fields(cls)}
    hints = _hints(cls)
    # What has no default comes first, as people write it.
    for name in sorted(hints, key=lambda key: _default(values[_field_name(cls, key)]) is not _REQUIRED):
        default = _default(values[_field_name(cls, name)])
        options = list(_alternatives(hints[name]))
        inner = [option for option in options if dataclasses.is_dataclass(option)]
        key = f"{prefix}{name}"
        if len(inner) == 1 and (dataclasses.is_dataclass(default) or len(options) == 1):
            yield key, "mapping", "required" if default is _REQUIRED else "", described.get(name, "")
            yield from _rows(typing.cast("type[Any]", inner[0]), f"{key}.")
        elif len(inner) > 1:
            chosen = "`null`" if default is None else f"`{{kind: {_tag(type(default))}}}`"
            yield key, "mapping with a `kind`", chosen, described.get(name, "")
            for option in inner:
                tag = _tag(option)
                yield f"{key}.kind: {tag}", "", "", headline(typing.cast("type[Any]", option))
                for row in _rows(typing.cast("type[Any]", option), f"{key}."):
                    if row[0] != f"{key}.kind":
                        yield row
        else:
            yield key, type_in_words(hints[name]), _default_words(default), described.get(name, "")


_REQUIRED = object()


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else _REQUIRED


def _default_words(default: Any) -> str:
    if default is _REQUIRED:
        return "required"
    plain = list(default) if isinstance(default, tuple) else default
    return f"`{json.dumps(plain)}`"


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name.rstrip("_"): hints[field.name] for field in dataclasses.fields(cls)}


def _field_name(cls: Any, key: str) -> str:
    return next(field.name for field in dataclasses.fields(cls) if field.name.rstrip("_") == key)


def _tag(cls: Any) -> str | None:
    literal = typing.get_args(_hints(cls).get("kind"))
    return literal[0] if literal else None


def _alternatives(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Annotated:
        chosen = next((mark.classes for mark in hint.__metadata__ if isinstance(mark, ByKind)), None)
        yield from _alternatives(hint.__origin__) if chosen is None else chosen
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            yield from _alternatives(option)
    else:
        yield hint


def _inside(hint: Any, part: str | int) -> Iterator[Any]:
    for option in _alternatives(hint):
        if dataclasses.is_dataclass(option):
            yield from [inner for name, inner in _hints(option).items() if name == part]
        elif typing.get_origin(option) is dict:
            yield typing.get_args(option)[1]
        elif typing.get_origin(option) is tuple:
            yield typing.get_args(option)[0]


def _classes(hint: Any) -> Iterator[type[Any]]:
    for option in _alternatives(hint):
        if dataclasses.is_dataclass(option):
            yield typing.cast("type[Any]", option)
            for inner in _hints(option).values():
                yield from _classes(inner)
        else:
            for inner in typing.get_args(option) if typing.get_origin(option) in (dict, tuple) else ():
                yield from _classes(inner)
