"""Walks over settings by their types: the keys at a place, the marks of every value, settings of an older version."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from draft.errors import ConfigError, DraftError
from draft.marks import Also, ByKind, Holds, Partly, hints, marks, plain
from draft.pipeline.document import Document, Keys

INPUTS = ("prompts", "rewards", "model")
"""What a stage is given besides the outputs of others."""

REQUIRED = object()
"""Stands for the default of a field that has none."""

M = TypeVar("M")


@dataclass(frozen=True)
class Place:
    """A value inside settings.

    Args:
        keys: Where it is.
        marks: What is declared of that place.
        value: The value.
    """

    keys: Keys
    marks: tuple[Any, ...]
    value: Any

    def mark(self, kind: type[M]) -> M | None:
        """The first mark of a kind, if there is one."""
        return next((mark for mark in self.marks if isinstance(mark, kind)), None)

    @property
    def holds(self) -> str:
        """What the place holds; empty where it is a plain setting."""
        return getattr(self.mark(Holds), "what", "")


def walk(hint: Any, value: Any, keys: Keys = (), *, defaults: bool = False) -> Iterator[Place]:
    """Every value inside settings, outer ones first, in the order of the fields; labels as they are in the file.

    Args:
        hint: The type of the settings.
        value: A value of that type, or plain data that may be wrong: what does not fit its type is not entered.
        keys: Where it is.
        defaults: Whether plain data that has a `kind`, and is thus complete, also has the fields that it leaves out.

    Yields:
        The places.
    """
    for key, inner, item in _items(hint, value, defaults=defaults):
        place = Place((*keys, key), marks(inner), item)
        yield place
        if place.holds not in INPUTS:  # of which there may be a million
            yield from walk(inner, item, place.keys, defaults=defaults)


def output_at(hint: Any, keys: Keys) -> str:
    """The name of the outputs that a type takes at a place inside it; empty where it takes none."""
    names = (mark.what for mark in marks_at(hint, keys) if isinstance(mark, Holds))
    return next((what for what in names if what not in INPUTS), "")


def marks_at(hint: Any, keys: Keys) -> tuple[Any, ...]:
    """Everything that a type declares of a place inside it."""
    options = (hint,)
    for part in keys:
        options = tuple(inside(options, part))
    return tuple(mark for option in options for mark in marks(option))


def places_of_files(hint: Any, prefix: str = "") -> list[str]:
    """Where a type holds outputs of stages or files: ``["adapters.LABEL.from", "curves.LABEL"]``."""
    places = []
    for key, inner in _parts(hint):
        name = f"{prefix}.{key}" if prefix else key
        outputs = [mark.what for mark in marks(inner) if isinstance(mark, Holds)]
        if not outputs:
            places += places_of_files(inner, name)
        elif outputs[0] not in INPUTS:
            places.append(name)
    return places


def keys_at(kind: Any, path: Keys, data: Any, *, aliases: bool = False) -> list[str]:
    """The keys that a type allows at a path inside it.

    Args:
        kind: A dataclass of the schema.
        path: Where to look, from the value that `kind` describes.
        data: That value as plain data; where there are alternatives, its `kind` keys choose among them.
        aliases: Whether the fields' other names count.

    Returns:
        Keys in the schema's order; none where any label is a key.
    """
    for part in path:
        kind = tuple(inside(kind, part))
        data = data.get(part) if isinstance(data, dict) else None
    options = _dataclasses(kind)
    chosen = data.get("kind") if isinstance(data, dict) else None
    matching = [option for option in options if tag(option) in (None, chosen)] or options
    by_key = {key: hint for option in matching for key, hint in hints(option).items()}
    return [*by_key, *(name for hint in by_key.values() for name in _aliases(hint) if aliases)]


def is_labelled(kind: Any, path: Keys) -> bool:
    """Whether a type has labels at a path inside it, which are up to the file, and under each the same keys."""
    for part in path:
        kind = tuple(inside(kind, part))
    values = [typing.get_args(option)[1] for option in alternatives(kind) if typing.get_origin(option) is dict]
    return bool(values) and Any not in values


def kinds_at(kind: Any, path: Keys) -> list[str]:
    """The alternatives that a type has at a path inside it, by their `kind`."""
    for part in path:
        kind = tuple(inside(kind, part))
    return [name for name in map(tag, _dataclasses(kind)) if name]


def completed(hint: Any, data: Any, leave_out: Callable[[Any], bool]) -> Any:
    """Settings that another version wrote down, as this one would write them.

    Args:
        hint: Their type.
        data: Plain data.
        leave_out: Asked of every mark of a field; the field is left out if the answer is once True.

    Returns:
        Plain data: fields have their own names, and those that were not there have their default.
    """
    if isinstance(data, list):
        return [completed(tuple(inside(hint, index)), item, leave_out) for index, item in enumerate(data)]
    if not isinstance(data, Mapping):
        return data
    cls = _chosen(hint, data)
    if cls is None:
        return {key: completed(tuple(inside(hint, key)), item, leave_out) for key, item in data.items()}
    unread, settings = dict(data), {}
    for key, inner in hints(cls).items():
        named = next((name for name in (key, *_aliases(inner)) if name in unread), None)
        value, default = unread.pop(named, REQUIRED) if named else REQUIRED, default_of(cls, key)
        if any(map(leave_out, marks(inner))):
            continue
        if value is not REQUIRED:
            settings[key] = completed(inner, value, leave_out)
        elif default is not REQUIRED:
            settings[key] = plain(default, leave_out)
    return settings | unread


def rename_aliases(hint: Any, data: Any, keys: Keys, document: Document, errors: list[DraftError]) -> dict[Keys, Keys]:
    """Give the keys of plain data that are another name of a field the field's own.

    Args:
        hint: The type of the data.
        data: Plain data, changed.
        keys: Where it is.
        document: The file; the places of values move along.
        errors: Gets an error where both names are given.

    Returns:
        Old to new place of what was renamed.
    """
    renamed: dict[Keys, Keys] = {}
    cls = _chosen(hint, data) if isinstance(data, dict) else None
    for key, inner in hints(cls).items() if cls is not None else ():
        for alias in _aliases(inner):
            if alias not in data:
                continue
            old, new = (*keys, alias), (*keys, key)
            if key in data:
                what = f"{'.'.join(map(str, old))} is another name of {key!r}, which is there too"
                errors.append(ConfigError(what, where=document.place(old), hint="drop one of the two"))
                del data[alias]
                continue
            entries = [(key if name == alias else name, value) for name, value in data.items()]
            data.clear()
            data.update(entries)
            document.move(old, new)
            renamed[old] = new
    for key, inner, item in list(_items(hint, data)):
        renamed |= rename_aliases(inner, item, (*keys, key), document, errors)
    return renamed


def default_of(cls: Any, key: str) -> Any:
    """The default of a dataclass's field; `REQUIRED` where it has none."""
    field = next(field for field in dataclasses.fields(cls) if field.name.rstrip("_") == key)
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else REQUIRED


def tag(cls: Any) -> str | None:
    """The value of a dataclass's key `kind` that chooses it among others."""
    literal = typing.get_args(hints(cls).get("kind"))
    return literal[0] if literal else None


def alternatives(hint: Any) -> Iterator[Any]:
    """The types that a value may have, without their marks; plain data counts as the dataclass that it has keys of.

    Args:
        hint: A type, or several in a tuple.

    Yields:
        Types that are no union.
    """
    if isinstance(hint, tuple):
        for option in hint:
            yield from alternatives(option)
    elif typing.get_origin(hint) is Annotated:
        partly = [mark.of for mark in hint.__metadata__ if isinstance(mark, Partly)]
        by_kind = [option for mark in hint.__metadata__ if isinstance(mark, ByKind) for option in mark.classes]
        yield from partly or by_kind or alternatives(hint.__origin__)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            yield from alternatives(option)
    else:
        yield hint


def inside(hint: Any, part: str | int) -> Iterator[Any]:
    """The types of what is under a key or an index of a value."""
    for option in alternatives(hint):
        if dataclasses.is_dataclass(option):
            yield from [inner for name, inner in hints(option).items() if part in (name, *_aliases(inner))]
        elif typing.get_origin(option) is dict:
            yield typing.get_args(option)[1]
        elif typing.get_origin(option) is tuple:
            yield typing.get_args(option)[0]


def classes(hint: Any) -> Iterator[type[Any]]:
    """All dataclasses that a type is made of, outer ones first."""
    for option in alternatives(hint):
        if dataclasses.is_dataclass(option):
            yield typing.cast("type[Any]", option)
            for inner in hints(option).values():
                yield from classes(inner)
        else:
            for inner in typing.get_args(option) if typing.get_origin(option) in (dict, tuple) else ():
                yield from classes(inner)


def _parts(hint: Any) -> Iterator[tuple[str, Any]]:
    """What a type is made of: keys, or LABEL or N for those that are up to the file."""
    for option in alternatives(hint):
        if dataclasses.is_dataclass(option):
            yield from hints(option).items()
        elif typing.get_origin(option) is dict:
            yield "LABEL", typing.get_args(option)[1]
        elif typing.get_origin(option) is tuple:
            yield "N", typing.get_args(option)[0]


def _items(hint: Any, value: Any, *, defaults: bool = False) -> Iterator[tuple[str | int, Any, Any]]:
    """The keys of a value with their types and what is under them; `defaults` as in `walk`."""
    if dataclasses.is_dataclass(value):
        for field, (key, inner) in zip(dataclasses.fields(value), hints(type(value)).items(), strict=True):
            yield key, inner, getattr(value, field.name)
    elif isinstance(value, Mapping):
        cls = _chosen(hint, value)
        if cls is not None:
            complete = defaults and tag(cls) is not None
            for key, inner in hints(cls).items():
                item = value[key] if key in value else default_of(cls, key) if complete else REQUIRED
                if item is not REQUIRED:
                    yield key, inner, item
        for key, item in value.items() if cls is None else ():
            for inner in inside(hint, key):
                yield key, inner, item
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            for inner in inside(hint, index):
                yield index, inner, item


def _chosen(hint: Any, data: Mapping[str, Any]) -> type[Any] | None:
    """The dataclass that plain data is of: by its `kind` where there are several."""
    options = _dataclasses(hint)
    if len(options) == 1:
        return options[0]
    return next((option for option in options if tag(option) in (None, data.get("kind"))), None)


def _dataclasses(hint: Any) -> list[Any]:
    return [option for option in alternatives(hint) if dataclasses.is_dataclass(option)]


def _aliases(hint: Any) -> list[str]:
    return [mark.name for mark in marks(hint) if isinstance(mark, Also)]
