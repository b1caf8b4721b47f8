"""The values of interpolations, with a limit on what they may make, and marks on what comes from the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from draft.pipeline.document import Entered, Keys, is_prompt
from draft.pipeline.expression import (
    Argument,
    Call,
    Entries,
    Items,
    Lookup,
    Part,
    Plain,
    Text,
    parse,
    parse_argument,
    split_name,
)
from draft.pipeline.references import parse_reference

MOST = 20_000_000
"""Characters, and 16 for each value, that the interpolations of a file may make together."""

CHAIN = 50
"""Values that may be looked up inside each other, one for the next."""

UNSET = "???"
"""Stands in a file for what has to be given."""


@dataclass(frozen=True)
class Result:
    """The value of an interpolation.

    Args:
        value: Plain data.
        entered: Where in it something came from the environment, to what that is.
    """

    value: Any
    entered: Mapping[Keys, Entered] = field(default_factory=lambda: MappingProxyType({}))


class UnknownName(Exception):
    """An interpolation names a value that is not there.

    Args:
        name: The name as it is written.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"no value {name!r}")
        self.name = name


class Unset(Exception):
    """A value has to be given."""


class Interpolations:
    """The values of a file with interpolations in them, each evaluated once.

    Args:
        raw: The file's plain data.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw
        self._known: dict[Keys, Result] = {}
        self._open: list[Keys] = []
        self._made = 0

    def value(self, keys: Keys) -> Result:
        """The value of a text, a number, ... at a place of the file.

        Args:
            keys: The place.

        Returns:
            Its value.

        Raises:
            Unset: It is ``???``.
            UnknownName: It names something that is not there.
            ValueError: It cannot be resolved, or makes too much.
        """
        text = _raw_at(self._raw, keys)
        if not isinstance(text, str) or is_prompt(keys):
            return Result(text)
        if text == UNSET:
            raise Unset
        if "${" not in text:
            return Result(text)
        if keys not in self._known:
            with_keys = self._entering(keys, lambda: self._joined(parse(text).parts, keys))
            self._known[keys] = with_keys
        return self._known[keys]

    def _entering(self, keys: Keys, evaluate: Callable[[], Result]) -> Result:
        if keys in self._open:
            raise ValueError("recursive interpolation")
        if len(self._open) >= CHAIN:
            raise ValueError(f"more than {CHAIN} values that name each other in a row")
        self._open.append(keys)
        try:
            return evaluate()
        finally:
            self._open.pop()

    def _joined(self, parts: Sequence[Part], keys: Keys) -> Result:
        """One interpolation by itself has its value; several pieces make a text."""
        if len(parts) == 1 and not isinstance(parts[0], str):
            return self._evaluated(parts[0], keys)
        found = [Result(part) if isinstance(part, str) else self._evaluated(part, keys) for part in parts]
        text = "".join(str(each.value) for each in found)
        self._count(text)
        if not any(each.entered for each in found):
            return Result(text)
        return Result(text, {(): Entered(text, "".join(map(_source, found)))})

    def _evaluated(self, part: Lookup | Call, keys: Keys) -> Result:
        name = "".join(str(self._joined((each,), keys).value) for each in part.name)
        if isinstance(part, Lookup):
            return self.looked_up(name, keys)
        if name not in _RESOLVERS:
            raise ValueError(f"unknown resolver {name!r}; the resolvers are {', '.join(_RESOLVERS)}")
        arguments = [self.argument(each, keys) for each in part.arguments]
        for each in arguments:
            self._count(each.value)
        result = _RESOLVERS[name](self, arguments, keys)
        self._count(result.value)
        return result

    def argument(self, argument: Argument, keys: Keys) -> Result:
        """The value of a resolver's argument at a place."""
        match argument:
            case Plain(value):
                return Result(value)
            case Text(parts):
                if all(isinstance(part, str) for part in parts):
                    return Result("".join(map(str, parts)))
                return self._joined(parts, keys)
            case Items(items):
                found = [self.argument(each, keys) for each in items]
                entered = {(i, *rest): e for i, each in enumerate(found) for rest, e in each.entered.items()}
                return Result([each.value for each in found], entered)
            case Entries(entries):
                mapping: dict[str, Any] = {}
                entered = {}
                for key, value in entries:
                    label, inner = self.argument(key, keys).value, self.argument(value, keys)
                    label = label if isinstance(label, str) else json.dumps(label)
                    mapping[label] = inner.value
                    entered |= {(label, *rest): each for rest, each in inner.entered.items()}
                return Result(mapping, entered)
            case _:
                return self._evaluated(argument, keys)

    def looked_up(self, name: str, keys: Keys) -> Result:
        """The value that a name means, seen from a place."""
        dots, rest = split_name(name)
        if dots > len(keys):
            raise UnknownName(name)
        path: Keys = keys[: len(keys) - dots] if dots else ()
        node = _raw_at(self._raw, path)
        for index, part in enumerate(rest):
            if isinstance(node, str) and "${" in node:
                return _inside(self.value(path), rest[index:], name)
            here = int(part) if isinstance(node, list) and part.isdecimal() else part
            if not _holds(node, here):
                raise UnknownName(name)
            path, node = (*path, here), node[here]
        return self._copied(path, node, name)

    def _copied(self, path: Keys, node: Any, name: str) -> Result:
        """The value at a place, newly made where it has values inside."""
        if not isinstance(node, dict | list):
            try:
                result = self.value(path)
            except Unset:
                raise ValueError(f"{'.'.join(map(str, path))} has no value yet") from None
            self._count(result.value)
            return Result(_fresh(result.value), result.entered)
        items: Any = node.items() if isinstance(node, dict) else enumerate(node)
        self._count(None)

        def evaluate() -> Result:
            found = {key: self._copied((*path, key), inner, name) for key, inner in items}
            entered = {(key, *rest): e for key, each in found.items() for rest, e in each.entered.items()}
            values = {key: each.value for key, each in found.items()}
            return Result(values if isinstance(node, dict) else list(values.values()), entered)

        return self._entering(path, evaluate)

    def _count(self, value: Any) -> None:
        self._made += 16 + (len(value) if isinstance(value, str) else 0)
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                self._count(inner)
        if self._made > MOST:
            raise ValueError(f"the interpolations of the file make more than {MOST // 10**6} MB")


def _raw_at(data: Any, keys: Keys) -> Any:
    for key in keys:
        data = data[key]
    return data


def _holds(node: Any, key: str | int) -> bool:
    return (
        key in node if isinstance(node, dict) else isinstance(node, list) and isinstance(key, int) and key < len(node)
    )


def _inside(result: Result, rest: Sequence[str], name: str) -> Result:
    node, keys = result.value, ()
    for part in rest:
        here = int(part) if isinstance(node, list) and part.isdecimal() else part
        if not _holds(node, here):
            raise UnknownName(name)
        node, keys = node[here], (*keys, here)
    entered = {path[len(keys) :]: each for path, each in result.entered.items() if path[: len(keys)] == keys}
    return Result(_fresh(node), entered)


def _fresh(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _fresh(inner) for key, inner in value.items()}
    return [_fresh(inner) for inner in value] if isinstance(value, list) else value


def _source(result: Result) -> str:
    """The text that makes a piece of a text: what came from the environment by its variable's name."""
    if not result.entered:
        text = str(result.value)
        return text if parse_reference(text) else text.replace("${", "\\${")
    return result.entered[()].source if () in result.entered else UNSET


def _written(result: Result) -> str:
    """An argument as it is written."""
    if result.entered:
        return _source(result)
    if isinstance(result.value, str):
        return "'" + result.value.replace("'", "\\'").replace("${", "\\${") + "'"
    return json.dumps(result.value)


def _env(work: Interpolations, arguments: Sequence[Result], keys: Keys) -> Result:
    name, *default = _given(arguments, 1, 2)
    key = str(name.value)
    if key not in os.environ:
        if not default:
            raise ValueError(f"environment variable {key!r} is not set")
        value = default[0].value
        return Result(None if value is None else str(value), default[0].entered)
    value = os.environ[key]
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"environment variable {key!r} is not UTF-8 text") from None
    shown = key if re.fullmatch(r"\w+", key) else "'" + key.replace("'", "\\'") + "'"
    return Result(value, {(): Entered(value, f"${{oc.env:{shown}}}")})


def _select(work: Interpolations, arguments: Sequence[Result], keys: Keys) -> Result:
    name, *default = _given(arguments, 1, 2)
    try:
        return work.looked_up(str(name.value), keys)
    except UnknownName:
        return default[0] if default else Result(None)


def _decode(work: Interpolations, arguments: Sequence[Result], keys: Keys) -> Result:
    (text,) = _given(arguments, 1, 1)
    if not isinstance(text.value, str):
        if text.value is None:
            return text
        raise ValueError(f"oc.decode takes text (got a {type(text.value).__name__})")
    if "${" in text.value:
        raise ValueError("oc.decode takes text without ${")
    value = work.argument(parse_argument(text.value), keys).value
    entered = {}
    if text.entered:
        source = f"${{oc.decode:{_source(text)}}}"
        entered = {path: Entered(inner, source if not path else UNSET) for path, inner in _leaves(value, ())}
    return Result(value, entered)


def _create(work: Interpolations, arguments: Sequence[Result], keys: Keys) -> Result:
    return _given(arguments, 1, 1)[0]


def _keys_of(work: Interpolations, arguments: Sequence[Result], keys: Keys) -> Result:
    found = work.looked_up(str(_given(arguments, 1, 1)[0].value), keys)
    return Result(list(_mapping(found)))


def _values_of(work: Interpolations, arguments: Sequence[Result], keys: Keys) -> Result:
    found = work.looked_up(str(_given(arguments, 1, 1)[0].value), keys)
    order = {key: index for index, key in enumerate(_mapping(found))}
    return Result(list(_mapping(found).values()), {(order[p[0]], *p[1:]): each for p, each in found.entered.items()})


def _mapping(found: Result) -> dict[str, Any]:
    if not isinstance(found.value, dict):
        raise ValueError(f"not a mapping (got a {type(found.value).__name__})")
    return found.value


def _leaves(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*keys, key))
    else:
        yield keys, value


def _given(arguments: Sequence[Result], least: int, most: int) -> Sequence[Result]:
    if not least <= len(arguments) <= most:
        raise ValueError(f"{len(arguments)} arguments where {least if least == most else f'{least} or {most}'} may be")
    return arguments


_RESOLVERS: Mapping[str, Callable[[Interpolations, Sequence[Result], Keys], Result]] = {
    "oc.env": _env,
    "oc.decode": _decode,
    "oc.select": _select,
    "oc.create": _create,
    "oc.dict.keys": _keys_of,
    "oc.dict.values": _values_of,
}
"""What may stand before the colon. No other of OmegaConf's: `oc.coerce` imports what it is told to."""
