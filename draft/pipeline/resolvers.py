"""What may stand before the colon of an interpolation: `oc.env`, `oc.decode`, ..."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from draft.pipeline.document import Entered, Keys
from draft.pipeline.expression import Argument, parse_argument
from draft.pipeline.references import parse_reference

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


class Values(Protocol):
    """The values of the file that an interpolation stands in."""

    def looked_up(self, name: str, keys: Keys) -> Result:
        """The value that a name means, seen from a place."""
        ...

    def argument(self, argument: Argument, keys: Keys) -> Result:
        """The value of a resolver's argument at a place."""
        ...


def source(result: Result) -> str:
    """The text that makes a piece of a text: what came from the environment by its variable's name."""
    if not result.entered:
        text = str(result.value)
        return text if parse_reference(text) else text.replace("${", "\\${")
    return result.entered[()].source if () in result.entered else UNSET


def _env(work: Values, arguments: Sequence[Result], keys: Keys) -> Result:
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


def _select(work: Values, arguments: Sequence[Result], keys: Keys) -> Result:
    name, *default = _given(arguments, 1, 2)
    try:
        return work.looked_up(str(name.value), keys)
    except UnknownName:
        return default[0] if default else Result(None)


def _decode(work: Values, arguments: Sequence[Result], keys: Keys) -> Result:
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
        decoded = f"${{oc.decode:{source(text)}}}"
        entered = {path: Entered(inner, UNSET if path else decoded) for path, inner in _leaves(value, ())}
    return Result(value, entered)


def _create(work: Values, arguments: Sequence[Result], keys: Keys) -> Result:
    return _given(arguments, 1, 1)[0]


def _keys_of(work: Values, arguments: Sequence[Result], keys: Keys) -> Result:
    group = work.looked_up(str(_given(arguments, 1, 1)[0].value), keys)
    return Result(list(_mapping(group)))


def _values_of(work: Values, arguments: Sequence[Result], keys: Keys) -> Result:
    group = work.looked_up(str(_given(arguments, 1, 1)[0].value), keys)
    order: dict[str | int, int] = {key: index for index, key in enumerate(_mapping(group))}
    entered = {(order[path[0]], *path[1:]): entry for path, entry in group.entered.items()}
    return Result(list(_mapping(group).values()), entered)


def _mapping(group: Result) -> dict[str, Any]:
    if not isinstance(group.value, dict):
        raise ValueError(f"not a mapping (got a {type(group.value).__name__})")
    return group.value


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


RESOLVERS: Mapping[str, Callable[[Values, Sequence[Result], Keys], Result]] = {
    "oc.env": _env,
    "oc.decode": _decode,
    "oc.select": _select,
    "oc.create": _create,
    "oc.dict.keys": _keys_of,
    "oc.dict.values": _values_of,
}
"""What may stand before the colon. No other of OmegaConf's: `oc.coerce` imports what it is told to."""
