"""The values of interpolations, with a limit on what they may make, and marks on what comes from the environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
    split_name,
)
from draft.pipeline.resolvers import RESOLVERS, UNSET, Result, UnknownName, source

MOST = 20_000_000
"""Characters, and 16 for each value, that the interpolations of a file may make together."""

CHAIN = 50
"""Values that may be looked up inside each other, one for the next."""


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
            self._known[keys] = self._entering(keys, lambda: self._joined(parse(text).parts, keys))
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
        results = [Result(part) if isinstance(part, str) else self._evaluated(part, keys) for part in parts]
        text = "".join(str(result.value) for result in results)
        self._count(text)
        if not any(result.entered for result in results):
            return Result(text)
        return Result(text, {(): Entered(text, "".join(map(source, results)))})

    def _evaluated(self, part: Lookup | Call, keys: Keys) -> Result:
        name = "".join(str(self._joined((piece,), keys).value) for piece in part.name)
        if isinstance(part, Lookup):
            return self.looked_up(name, keys)
        if name not in RESOLVERS:
            raise ValueError(f"unknown resolver {name!r}; the resolvers are {', '.join(RESOLVERS)}")
        arguments = [self.argument(argument, keys) for argument in part.arguments]
        for argument in arguments:
            self._count(argument.value)
        result = RESOLVERS[name](self, arguments, keys)
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
                return _united(dict(enumerate(self.argument(item, keys) for item in items)), list)
            case Entries(entries):
                return _united({self._label(key, keys): self.argument(value, keys) for key, value in entries}, dict)
            case _:
                return self._evaluated(argument, keys)

    def _label(self, key: Argument, keys: Keys) -> str:
        """A key of a mapping, which results may show."""
        label = self.argument(key, keys)
        if label.entered:
            raise ValueError("a key cannot come from the environment")
        return label.value if isinstance(label.value, str) else json.dumps(label.value)

    def looked_up(self, name: str, keys: Keys) -> Result:
        """The value that a name means, seen from a place."""
        dots, rest = split_name(name)
        if dots > len(keys):
            raise UnknownName(name)
        path: Keys = keys[: len(keys) - dots] if dots else ()
        node: Any = _raw_at(self._raw, path)
        for index, part in enumerate(rest):
            if isinstance(node, str) and "${" in node:
                return _inside(self.value(path), rest[index:], name)
            key: Any = _key(node, part, name)
            path, node = (*path, key), node[key]
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
            return _united({key: self._copied((*path, key), inner, name) for key, inner in items}, type(node))

        return self._entering(path, evaluate)

    def _count(self, value: Any) -> None:
        self._made += 16 + (len(value) if isinstance(value, str) else 0)
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                self._count(inner)
        if self._made > MOST:
            raise ValueError(f"the interpolations of the file make more than {MOST // 10**6} MB")


def _united(results: Mapping[Any, Result], kind: type) -> Result:
    """A list or a mapping of results."""
    entered = {(key, *path): entry for key, result in results.items() for path, entry in result.entered.items()}
    values = {key: result.value for key, result in results.items()}
    return Result(values if kind is dict else list(values.values()), entered)


def _raw_at(data: Any, keys: Keys) -> Any:
    for key in keys:
        data = data[key]
    return data


def _key(node: Any, part: str, name: str) -> str | int:
    """The key or index of a part of a name."""
    if isinstance(node, list) and len(part) < 10 and part.isdecimal() and int(part) < len(node):
        return int(part)
    if isinstance(node, dict) and part in node:
        return part
    raise UnknownName(name)


def _inside(result: Result, rest: Sequence[str], name: str) -> Result:
    node, keys = result.value, ()
    for part in rest:
        key = _key(node, part, name)
        node, keys = node[key], (*keys, key)
    entered = {path[len(keys) :]: entry for path, entry in result.entered.items() if path[: len(keys)] == keys}
    return Result(_fresh(node), entered)


def _fresh(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _fresh(inner) for key, inner in value.items()}
    return [_fresh(inner) for inner in value] if isinstance(value, list) else value
