"""Texts with `${...}` in them, taken apart: names of values, calls of resolvers, and what stands around them.

The grammar is OmegaConf's, as far as pipeline files use it: `${a.b[0]}`, `${.sibling}`, `${name:argument, ...}`, each
of them nested in others, and `\\${` for the two characters themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

DEEPEST = 20
"""Levels of `${`, `[` and `{` inside each other that a text may have."""

_NUMBERS = (
    (re.compile(r"[+-]?(0|[1-9][0-9]*)"), int),
    (re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?"), float),
    (re.compile(r"[+-]?(inf|nan)", re.IGNORECASE), float),
)
_WORDS = {"null": None, "true": True, "false": False}
_NAME = re.compile(r"[^\s\\{}()\[\]:.$,'\"]+")
_REFERENCE = re.compile(r"\$\{out:[^{}]*\}")
_OPENING = re.compile(r"(\\*)\$\{")


@dataclass(frozen=True)
class Lookup:
    """`${a.b}`.

    Args:
        name: Its name: texts, and what is looked up first.
    """

    name: tuple[Part, ...]


@dataclass(frozen=True)
class Call:
    """`${name:arguments}`.

    Args:
        name: The resolver's name: texts, and what is looked up first.
        arguments: What it is given.
    """

    name: tuple[Part, ...]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Text:
    """Pieces that are joined into one text.

    Args:
        parts: In order.
    """

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Items:
    """A list among arguments.

    Args:
        items: Its items.
    """

    items: tuple[Argument, ...]


@dataclass(frozen=True)
class Entries:
    """A mapping among arguments.

    Args:
        entries: Keys and values.
    """

    entries: tuple[tuple[Argument, Argument], ...]


@dataclass(frozen=True)
class Plain:
    """A value that is written out.

    Args:
        value: Text, a number, a boolean or null.
    """

    value: Any


Part: TypeAlias = "str | Lookup | Call"
Argument: TypeAlias = "Plain | Text | Lookup | Call | Items | Entries"


def parse(text: str) -> Text:
    """Take a text apart.

    Args:
        text: As it stands in a file.

    Returns:
        Its pieces; references to outputs, `${out:stage.output}`, stay texts.

    Raises:
        ValueError: Not readable.
    """
    return Text(tuple(part for part, _ in _pieces(text, 0, "")))


def parse_argument(text: str) -> Argument:
    """Read a text as one argument of a resolver: a number, a list, a mapping, ...

    Args:
        text: The text.

    Returns:
        What it is.

    Raises:
        ValueError: Not readable.
    """
    argument, at = _argument(text, 0, "", 0)
    if at != len(text):
        raise ValueError("more than one value")
    return argument


def _pieces(text: str, at: int, quote: str, depth: int = 0) -> Iterator[tuple[Part, int]]:
    """The pieces of a text up to its end or the closing quote, each with where the next one begins."""
    start = at
    while at < len(text) and not (quote and text[at] == quote):
        if quote and text[at] == "\\" and text[at + 1 : at + 2] == quote:
            if text[start:at]:
                yield text[start:at], at
            yield quote, at + 2
            start = at = at + 2
            continue
        match = _OPENING.match(text, at) if quote else _OPENING.search(text, at)
        if match is None:
            at = at + 1 if quote else len(text)
            continue
        at = match.start()
        literal = text[start:at] + "\\" * (len(match[1]) // 2)
        at = match.end()
        if len(match[1]) % 2:
            yield f"{literal}${{", at
        else:
            if literal:
                yield literal, at - 2
            if reference := _REFERENCE.match(text, at - 2):
                at = reference.end()
                yield reference[0], at
            else:
                inner, at = _interpolation(text, at, depth + 1)
                yield inner, at
        start = at
    if text[start:at]:
        yield text[start:at], at


def _interpolation(text: str, at: int, depth: int) -> tuple[Lookup | Call, int]:
    """What follows `${`, and where it ends."""
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} levels")
    name: list[Part] = []
    at = _blank(text, at)
    while at < len(text):
        if text.startswith("${", at):
            inner, at = _interpolation(text, at + 2, depth + 1)
            name.append(inner)
        elif text[at] == "}" and name:
            return Lookup(tuple(name)), at + 1
        elif text[at] == ":" and name:
            arguments, at = _sequence(text, at + 1, "}", depth)
            return Call(tuple(name), tuple(arguments)), at
        elif text[at] in ".[]":
            name.append(text[at])
            at += 1
        elif match := _NAME.match(text, at):
            name.append(match[0])
            at = match.end()
        elif text[at].isspace() and text[_blank(text, at) :].startswith(("}", ":")):
            at = _blank(text, at)
        else:
            break
    raise ValueError("no name and closing bracket after ${")


def _sequence(text: str, at: int, end: str, depth: int) -> tuple[list[Argument], int]:
    """Arguments up to a closing bracket."""
    items: list[Argument] = []
    at = _blank(text, at)
    if text.startswith(end, at):
        return items, at + 1
    while True:
        item, at = _argument(text, at, f",{end}", depth)
        items.append(item)
        if text.startswith(end, at):
            return items, at + 1
        if not text.startswith(",", at):
            raise ValueError(f"no closing {end}")
        at += 1


def _argument(text: str, at: int, ends: str, depth: int) -> tuple[Argument, int]:
    """One argument up to one of some characters, which follows it."""
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} levels")
    at = _blank(text, at)
    first = text[at : at + 1]
    if first in ("'", '"') and first:
        pieces = list(_pieces(text, at + 1, first, depth))
        parts, at = [part for part, _ in pieces], pieces[-1][1] if pieces else at + 1
        if not text.startswith(first, at):
            raise ValueError("no closing quote")
        argument: Argument = Text(tuple(parts))
        at += 1
    elif first == "[":
        items, at = _sequence(text, at + 1, "]", depth + 1)
        argument = Items(tuple(items))
    elif first == "{":
        argument, at = _entries(text, at + 1, depth + 1)
    else:
        return _primitive(text, at, ends, depth)
    at = _blank(text, at)
    if at < len(text) and text[at] not in ends:
        raise ValueError("no comma between two arguments")
    return argument, at


def _entries(text: str, at: int, depth: int) -> tuple[Entries, int]:
    entries: list[tuple[Argument, Argument]] = []
    at = _blank(text, at)
    while not text.startswith("}", at):
        key, at = _argument(text, at, ":,}", depth)
        if not text.startswith(":", at):
            raise ValueError("no value after a key")
        value, at = _argument(text, at + 1, ",}", depth)
        entries.append((key, value))
        if text.startswith(",", at):
            at = _blank(text, at + 1)
        elif not text.startswith("}", at):
            raise ValueError("no closing bracket")
    return Entries(tuple(entries)), at + 1


def _primitive(text: str, at: int, ends: str, depth: int) -> tuple[Argument, int]:
    """A value without quotes: a number, a word, or text with interpolations in it."""
    parts: list[Part] = []
    literal = ""
    while at < len(text) and text[at] not in ends:
        if text.startswith("${", at):
            parts += [literal] if literal else []
            literal = ""
            inner, at = _interpolation(text, at + 2, depth + 1)
            parts.append(inner)
        elif text[at] == "\\" and text[at + 1 : at + 2] in ("\\", *"()[]{}:=,$ "):
            literal += text[at + 1 : at + 2]
            at += 2
        elif text[at] in "[]{}'\"":
            raise ValueError(f"{text[at]} in a value without quotes")
        else:
            literal += text[at]
            at += 1
    literal = literal.rstrip()
    if not parts:
        return Plain(_scalar(literal)), at
    parts += [literal] if literal else []
    return (parts[0] if len(parts) == 1 and not isinstance(parts[0], str) else Text(tuple(parts))), at


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if len(text) <= 400:  # longer ones are no numbers that anybody means
        for pattern, kind in _NUMBERS:
            if pattern.fullmatch(text):
                return kind(text)
    return text


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def split_name(name: str) -> tuple[int, Sequence[str]]:
    """Split the name of a value.

    Args:
        name: ``"a.b[0]"``; with leading dots it is relative.

    Returns:
        The number of leading dots, and the keys.

    Raises:
        ValueError: Not readable.

    Example:
        >>> split_name("..a[0].b")
        (2, ['a', '0', 'b'])
    """
    rest = name.lstrip(".")
    keys = re.findall(r"[^.\[\]]+", rest)
    if rest and re.sub(r"\[([^.\[\]]+)\]", r".\1", rest).lstrip(".").split(".") != keys:
        raise ValueError(f"not the name of a value (got {name!r})")
    return len(name) - len(rest), keys
