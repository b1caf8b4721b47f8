"""The schema as people and editors read it: the keys at a place, a table of all keys, a JSON Schema."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from draft.errors import DraftError
from draft.isolation.settings import Isolation
from draft.marks import hints
from draft.pipeline.fields import REQUIRED, alternatives, classes, default_of, tag
from draft.pipeline.inputs import STAGE, Head, ScheduledAdapter
from draft.pipeline.kinds import KINDS
from draft.rewards.discovery import reward_entries, spellings
from draft.rewards.loading import find_reward
from draft.rewards.words import type_in_words


def json_schema() -> dict[str, Any]:
    """The JSON Schema of pipeline files, for editors; descriptions are those of the docstrings."""
    stage: Any = typing.Union[tuple(kind.settings for kind in KINDS.values())]  # noqa: UP007
    schema = TypeAdapter(Head).json_schema(by_alias=True)
    by_kind: Any = Annotated[stage, Field(discriminator="kind")]
    inner = TypeAdapter(dict[Annotated[str, Field(pattern=STAGE)], by_kind])  # pyright: ignore[reportInvalidTypeForm]
    stages = inner.json_schema(by_alias=True)
    schema["$defs"] = stages.pop("$defs")
    schema["properties"]["stages"] = {**schema["properties"]["stages"], **stages}
    by_name = {cls.__name__: cls for cls in [Head, *classes(stage)]}
    for name, definition in [(Head.__name__, schema), *schema["$defs"].items()]:
        if name in by_name:
            described = descriptions(by_name[name])
            definition["description"] = headline(by_name[name])
            for key, entry in definition.get("properties", {}).items():
                entry.setdefault("description", described.get(key, ""))
                if key == "rewards":
                    entry["properties"] = _installed_rewards()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Draft pipeline"}


def _installed_rewards() -> dict[str, Any]:
    """The options of the installed rewards; a label with `use` may have another reward's."""
    term_options = {
        "use": {"type": "string", "description": "The reward's name; the label where it is left out."},
        "weight": {"type": "number", "default": 1.0, "description": "Its factor in the sum; negative asks for less."},
        "device": {"type": "string", "default": "", "description": "Where to load it; empty: where the images are."},
        "isolated": _isolated_schema(),
    }
    schemas: dict[str, Any] = {}
    for entry, name in spellings(reward_entries()).items():
        if name != entry.name:
            continue  # a label cannot be its name
        try:
            schema = find_reward(entry.name).model_json_schema()
        except DraftError:
            continue  # broken: said where it is used, and editors need the rest
        if "$defs" not in schema:
            schema["properties"] = {**term_options, **schema.get("properties", {})}
            schemas[entry.name] = {"anyOf": [{"type": "object", "required": ["use"]}, {"type": "null"}, schema]}
    return schemas


def _isolated_schema() -> dict[str, Any]:
    schema = TypeAdapter(Isolation).json_schema()
    described = descriptions(Isolation)
    for key, entry in schema["properties"].items():
        entry["description"] = described[key]
    return schema | {"description": headline(Isolation)}


def key_tables() -> str:
    """All keys of a pipeline file as Markdown tables, one per stage kind; `docs/pipeline-reference.md` holds them."""
    parts = ["### The file\n\n" + _table(Head, "")]
    for name, kind in KINDS.items():
        outputs = ", ".join(f"`{output}` ({path})" for output, path in kind.outputs.items())
        settings = kind.settings
        parts.append(f"### `kind: {name}`\n\n{headline(settings)}\n\nOutputs: {outputs}.\n\n{_table(settings, '')}")
    adapter = ScheduledAdapter
    parts.append(f"### An adapter of a stage\n\n{headline(adapter)}\n\n{_table(adapter, 'adapters.LABEL.')}")
    parts.append(f"### `isolated` of a reward\n\n{headline(Isolation)}\n\n{_table(Isolation, 'isolated.')}")
    return "\n\n".join(parts) + "\n"


BAR = "\\|"
"""A bar inside a cell of a Markdown table."""


def headline(cls: type[Any]) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def descriptions(cls: type[Any]) -> dict[str, str]:
    """Key to description, from the `Args:` of a class and of those it extends."""
    described: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")[2]
        for match in re.finditer(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            described[match[1].rstrip("_")] = " ".join(match[2].split())
    return described


def _table(cls: type[Any], prefix: str) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, meaning in _rows(cls, prefix):
        rows.append(f"| `{key}` | {kind} | {default} | {meaning.replace('|', BAR)} |")
    return "\n".join(rows)


def _rows(cls: type[Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    described = descriptions(cls)
    fields = hints(cls)
    # What has no default comes first, as people write it.
    for name in sorted(fields, key=lambda key: default_of(cls, key) is not REQUIRED):
        default = default_of(cls, name)
        options = list(alternatives(fields[name]))
        inner = [option for option in options if dataclasses.is_dataclass(option)]
        key = f"{prefix}{name}"
        if len(inner) == 1 and (dataclasses.is_dataclass(default) or len(options) == 1):
            yield key, "mapping", "required" if default is REQUIRED else "", described.get(name, "")
            yield from _rows(typing.cast("type[Any]", inner[0]), f"{key}.")
        elif len(inner) > 1:
            chosen = "`null`" if default is None else f"`{{kind: {tag(type(default))}}}`"
            yield key, "mapping with a `kind`", chosen, described.get(name, "")
            for option in inner:
                yield f"{key}.kind: {tag(option)}", "", "", headline(typing.cast("type[Any]", option))
                for row in _rows(typing.cast("type[Any]", option), f"{key}."):
                    if row[0] != f"{key}.kind":
                        yield row
        else:
            yield key, type_in_words(fields[name]), _default_words(default), described.get(name, "")


def _default_words(default: Any) -> str:
    if default is REQUIRED:
        return "required"
    plain = list(default) if isinstance(default, tuple) else default
    return f"`{json.dumps(plain)}`"
