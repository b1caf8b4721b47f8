"""Pydantic's findings in Draft's words: one line each, with the key, the bound and what was received."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from draft.errors import ConfigError, DraftError, did_you_mean
from draft.marks import Elsewhere
from draft.methods.values import METHODS
from draft.pipeline.document import Document, Keys, value_at
from draft.pipeline.fields import keys_at, kinds_at, marks_at
from draft.rewards.words import MISSING, UNKNOWN, expected, is_bound, message, shown

_TAGS = ("a list of prompts", "a prompt file")


@lru_cache(maxsize=32)
def _adapter(kind: Any, methods: tuple[Any, ...]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # a method that joined the list has another schema


def validate(kind: Any, data: Any, path: Keys, document: Document) -> tuple[Any, list[DraftError]]:
    """Make a typed value of plain data, strictly: ``"20"`` is not an integer.

    Args:
        kind: The type, usually a stage's dataclass.
        data: Plain data, as in JSON.
        path: Where it is in the document.
        document: The file, for the places of errors.

    Returns:
        The value (None if there are errors) and the errors.
    """
    try:
        # In JSON mode strictness still lets a list become a tuple and an integer a float.
        return _adapter(kind, tuple(METHODS)).validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        if any(detail["type"] == "json_invalid" for detail in error.errors(include_url=False, include_input=False)):
            name = ".".join(map(str, path)) or "the file"
            what = f"{name} cannot be read: {message(error.errors(include_url=False, include_input=False)[0])}"
            return None, [ConfigError(what, where=document.place(path))]
        return None, list(_explain(error, data, kind, path, document))


def _explain(error: ValidationError, data: Any, kind: Any, path: Keys, document: Document) -> Iterable[DraftError]:
    # Alternatives of a union give one finding each; they are joined into one sentence per key.
    grouped: dict[Keys, list[Any]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(_clean(detail["loc"], data), []).append(detail)
    unknown = [loc for loc, details in grouped.items() if details[0]["type"] in UNKNOWN]
    for loc, details in grouped.items():
        if not loc:  # it is no such thing at all
            wanted = dict.fromkeys(expected(finding) or message(finding) for finding in details)
            what = f"{'.'.join(map(str, path)) or 'the file'} must be {' or '.join(wanted)} (got {shown(data)})"
            yield ConfigError(what, where=document.place(path))
            continue
        close = get_close_matches(str(loc[-1]), [str(other[-1]) for other in unknown if other[:-1] == loc[:-1]])
        if details[0]["type"] in MISSING and close:
            continue  # it is there, misspelt
        inside = any(other[: len(loc)] == loc != other for other in grouped)
        if inside and all(detail["type"].endswith("_type") for detail in details):
            continue  # another alternative fits better, down to what is wrong in it
        if details[0]["type"] == "too_short" and any(other[: len(loc)] == loc != other for other in grouped):
            continue  # its items are wrong, and pydantic counts the right ones only
        yield _finding(details, loc, data, kind, path, document)


def _finding(details: list[Any], loc: Keys, data: Any, kind: Any, path: Keys, document: Document) -> ConfigError:
    detail, place = details[0], document.place((*path, *loc))
    key = ".".join(map(str, (*path, *loc)))
    got = shown(value_at(data, loc))
    context = detail.get("ctx", {})
    match detail["type"]:
        case unknown if unknown in UNKNOWN:
            for mark in marks_at(kind, loc[:-1]):
                if isinstance(mark, Elsewhere) and mark.key == loc[-1]:
                    return ConfigError(f"{key} {mark.why}", where=place, hint=mark.hint)
            known = keys_at(kind, loc[:-1], data)
            hint = did_you_mean(str(loc[-1]), known, otherwise=f"the keys here are {', '.join(known)}")
            return ConfigError(f"unknown key {key!r}", where=place, hint=hint)
        case missing if missing in MISSING and isinstance(value_at(data, loc[:-1]), list):
            parent = ".".join(map(str, (*path, *loc[:-1])))
            what = f"{parent} must have at least {int(loc[-1]) + 1} items (got {shown(value_at(data, loc[:-1]))})"
            return ConfigError(what, where=place)
        case missing if missing in MISSING:
            return ConfigError(f"missing key {key!r}", where=place, hint=f"add '{loc[-1]}:'")
        case "union_tag_invalid":
            known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            tag = context["tag"]
            hint = did_you_mean(tag, known, otherwise=f"the kinds are {', '.join(known)}")
            return ConfigError(f"unknown {loc[-1]} {tag!r}", where=document.place((*path, *loc, "kind")), hint=hint)
        case "union_tag_not_found":
            what = (
                "needs a key 'kind'" if isinstance(value_at(data, loc), Mapping) else "must be a mapping with a 'kind'"
            )
            hint = f"the kinds are {', '.join(kinds_at(kind, loc))}"
            return ConfigError(f"{key} {what} (got {got})", where=place, hint=hint)
        case "too_short":
            return ConfigError(f"{key} is empty", where=place, hint=f"give at least {context['min_length']}")
        case "string_too_short":
            return ConfigError(f"{key} is empty text", where=place)
        case "string_pattern_mismatch":
            what = f"{key!r} is not a usable name" if value_at(data, loc) is None else f"{key} is not a usable name"
            name = loc[-1] if isinstance(value_at(data, loc[:-1]), Mapping) and len(loc) > 1 else value_at(data, loc)
            return ConfigError(
                f"{what} (got {shown(name)})",
                where=place,
                hint="names have up to 100 letters, digits, - and _, and begin with a letter or a digit",
            )
    details = [detail for detail in details if is_bound(detail)] or details
    wanted = dict.fromkeys(expected(finding) or message(finding) for finding in details)
    return ConfigError(f"{key} must be {' or '.join(wanted)} (got {got})", where=place)


def _clean(loc: Iterable[str | int], data: Any) -> Keys:
    """A finding's path without the marks that pydantic adds for alternatives of a union."""
    clean: list[str | int] = []
    value = data
    for part in loc:
        if part == "[key]":
            continue
        if isinstance(value, list):
            if not isinstance(part, int):
                continue
            value = value[part] if part < len(value) else None
        elif isinstance(value, Mapping):
            if part in _TAGS or (part not in value and part == value.get("kind")):
                continue
            value = value.get(part)
        else:
            if clean or part in _TAGS:
                continue
            value = None
        clean.append(part)
    return tuple(clean)
