"""Types, bounds and pydantic's findings in words; one vocabulary for pipelines, rewards and the command line."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's kinds of finding: a key that nothing asks for."""
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
"""Pydantic's kinds of finding: a key that has to be there."""

_BOUNDS = {"ge": "at least {}", "gt": "greater than {}", "le": "at most {}", "lt": "less than {}"}
_FINDINGS = {
    "greater_than_equal": "ge",
    "greater_than": "gt",
    "less_than_equal": "le",
    "less_than": "lt",
}
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "dataclass_exact_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
    "none_required": "null",
}
_SCHEMA_BOUNDS = {
    "minimum": _BOUNDS["ge"],
    "exclusiveMinimum": _BOUNDS["gt"],
    "maximum": _BOUNDS["le"],
    "exclusiveMaximum": _BOUNDS["lt"],
    "minLength": "at least {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
_HINTS = {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "null", dict: "mapping"}
_SCHEMA_TYPES = {"string": "text", "boolean": "true or false", "object": "mapping"}


def expected(finding: Mapping[str, Any]) -> str:
    """What pydantic expected, to follow "must be": ``"at least 1"``, ``"an integer"``, ``"'a' or 'b'"``.

    Args:
        finding: An entry of `ValidationError.errors()`.

    Returns:
        A few words; empty where only pydantic's own message fits, see `message`.
    """
    kind, context = finding["type"], finding.get("ctx", {})
    if kind in _FINDINGS:
        name = _FINDINGS[kind]
        return _BOUNDS[name].format(_number(context[name]))
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    return context["expected"] if kind == "literal_error" else _EXPECTED.get(kind, "")


def is_bound(finding: Mapping[str, Any]) -> bool:
    """Whether a finding is of a number that is too small or too large, which only a number of the right type can be."""
    return finding["type"] in _FINDINGS


def message(finding: Mapping[str, Any]) -> str:
    """Pydantic's own message as Draft writes messages.

    Args:
        finding: An entry of `ValidationError.errors()`.

    Returns:
        The message in lower case, without the name of the exception that a validator raised.
    """
    text = str(finding["msg"])
    return (text[:1].lower() + text[1:]).removeprefix("value error, ")


def shown(value: Any) -> str:
    """What was received, as a message shows it: as YAML would write it, and cut where it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def bounds(hint: Any) -> list[str]:
    """The bounds of a type in words.

    Args:
        hint: A type, perhaps `Annotated`, perhaps one that may be None.

    Returns:
        For example ``["at least 0", "less than 1"]``; bounds of a million and more, which only guard, are left out.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [word for option in typing.get_args(hint) for word in bounds(option)]
    if typing.get_origin(hint) is not Annotated:
        return []
    return [
        text.format(value)
        for constraint in _flat(hint.__metadata__)
        for name, text in _BOUNDS.items()
        if (value := getattr(constraint, name, None)) is not None and value < 1e6
    ]


def choices(hint: Any) -> list[str]:
    """The words that a `Literal` type allows; none for other types."""
    return [str(value) for value in typing.get_args(hint)] if typing.get_origin(hint) is Literal else []


def type_in_words(hint: Any) -> str:
    """Describe a type with its bounds.

    Args:
        hint: A type hint of a settings dataclass.

    Returns:
        For example ``"integer, at least 1 or null"``.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join([type_in_words(hint.__origin__), *bounds(hint)])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_in_words(option) for option in arguments))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {type_in_words(arguments[0])}"
    if dataclasses.is_dataclass(hint):
        return "mapping of " + ", ".join(f"`{field.name.rstrip('_')}`" for field in dataclasses.fields(hint))
    return _HINTS.get(origin or hint, getattr(hint, "__name__", str(hint)))


def schema_type_in_words(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Describe the type of an entry of a JSON Schema.

    Args:
        entry: The entry.
        schema: The schema that holds it, with its `$defs`.

    Returns:
        For example ``"list of text"``.
    """
    if "$ref" in entry:
        return schema_type_in_words(schema["$defs"][entry["$ref"].rsplit("/", 1)[-1]], schema)
    if "anyOf" in entry:
        return " or ".join(schema_type_in_words(option, schema) for option in entry["anyOf"])
    if "enum" in entry:
        return " or ".join(json.dumps(value, ensure_ascii=False) for value in entry["enum"])
    if entry.get("type") == "array" and isinstance(entry.get("items"), dict):
        return f"list of {schema_type_in_words(entry['items'], schema)}"
    kind = str(entry.get("type", "any"))
    return _SCHEMA_TYPES.get(kind, kind)


def schema_bounds(entry: Mapping[str, Any]) -> str:
    """The bounds of an entry of a JSON Schema in words."""
    low, high = entry.get("minimum"), entry.get("maximum")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return ", ".join(text.format(entry[key]) for key, text in _SCHEMA_BOUNDS.items() if key in entry)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and abs(value) < 1e6 else str(value)


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item
