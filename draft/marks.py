"""Marks in `Annotated`: what a field of a settings dataclass holds, whether it matters, its size in a rehearsal.

A fact about a setting is declared here alone, on the field. References, fingerprints, resuming, provenance, stamps and
rehearsals read the marks; none of them has a list of names of its own. No torch.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any


@dataclass(frozen=True)
class Holds:
    """The field holds what a stage works on, not a setting of it.

    Args:
        what: `prompts`, `rewards` or `model`; any other word is the name of an output: the field is then a reference
            `${out:stage.output}` to an output of that name, or a file of that kind.
    """

    what: str


@dataclass(frozen=True)
class Inert:
    """The field has no effect on the result, so that changing it redoes nothing and a training goes on.

    Args:
        rounding: Whether it decides where, in which pieces or in which order the same mathematics is computed, so that
            rounding, time and memory may differ. False: not one bit of the result depends on it.
    """

    rounding: bool = False


@dataclass(frozen=True)
class Extends:
    """The field says how far a stage goes: with another value it goes on from what it has made, as far as that fits."""


@dataclass(frozen=True)
class Layout:
    """The field changes how a page shows the results, and no result."""


@dataclass(frozen=True)
class Also:
    """The field has another name, which files may use instead.

    Args:
        name: The other name.
    """

    name: str


@dataclass(frozen=True)
class Partly:
    """The field is plain data with some of the keys of a dataclass.

    Args:
        of: The dataclass.
    """

    of: type[Any]


@dataclass(frozen=True, eq=False)
class ByKind:
    """The field has one of several dataclasses, chosen by its key `kind`.

    They are in a list that may grow, unlike the alternatives of a union: it is read whenever pydantic makes a schema or
    the keys of a file are listed.

    Args:
        classes: The dataclasses, each with a field `kind: Literal["name"] = "name"`.
    """

    classes: list[type[Any]]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """The schema of a discriminated union, in pydantic's own form."""
        choices = {typing.get_args(hints(cls)["kind"])[0]: handler.generate_schema(cls) for cls in self.classes}
        return {"type": "tagged-union", "choices": choices, "discriminator": "kind"}


@dataclass(frozen=True)
class Elsewhere:
    """The mappings in this field do not have a key that one may expect there.

    Args:
        key: The key.
        why: Why not; it follows the full key in the error.
        hint: Where it belongs.
    """

    key: str
    why: str
    hint: str


@dataclass(frozen=True)
class AtMost:
    """In a rehearsal the number is at most this large; None stays None.

    Args:
        limit: A number, or the dotted key of another setting of the stage, of which the value in the rehearsal counts.
        above: A neighbouring list; the limit is at least one more than it has items. Empty: none.
    """

    limit: float | str
    above: str = ""


@dataclass(frozen=True)
class Instead:
    """In a rehearsal the field has this value.

    Args:
        value: The value.
        keep: Values that it may have there as well.
    """

    value: Any
    keep: tuple[Any, ...] = ()


@dataclass(frozen=True)
class First:
    """In a rehearsal the list has at most so many items, the first ones.

    Args:
        count: How many.
    """

    count: int


@dataclass(frozen=True)
class ShareOf:
    """In a rehearsal the number is the same share of another setting as before, rounded.

    Args:
        of: Dotted key of the other setting in the stage.
        least: The smallest number that it becomes.
    """

    of: str
    least: int = 0


@dataclass(frozen=True)
class Within:
    """In a rehearsal an interval that another setting would never reach becomes a quarter of that setting.

    Args:
        of: Dotted key of the other setting in the stage; in a stage without it the interval stays.
    """

    of: str


@cache
def hints(cls: Any) -> Mapping[str, Any]:
    """The types of a dataclass's fields with their marks.

    Args:
        cls: The dataclass.

    Returns:
        Key to type. The key is the field's name without the underscore that keeps it from being a word of Python.
    """
    types_by_name = typing.get_type_hints(cls, include_extras=True)
    return {field.name.rstrip("_"): types_by_name[field.name] for field in dataclasses.fields(cls)}


def marks(hint: Any) -> tuple[Any, ...]:
    """Everything that stands in the `Annotated` of a type, and in those of its alternatives.

    Args:
        hint: The type of a field.

    Returns:
        The marks, outer ones first, and whatever else stands there.
    """
    if typing.get_origin(hint) is Annotated:
        return (*hint.__metadata__, *marks(hint.__origin__))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(mark for option in typing.get_args(hint) for mark in marks(option))
    return ()


def plain(value: Any, leave_out: Callable[[Any], bool]) -> Any:
    """Settings as plain data without some of their fields.

    Args:
        value: A settings dataclass, or a value in one.
        leave_out: Asked of every mark of a field; the field is left out if the answer is once True.

    Returns:
        Mappings, lists, numbers and text, newly made.
    """
    if dataclasses.is_dataclass(value):
        return {
            key: plain(getattr(value, field.name), leave_out)
            for (key, hint), field in zip(hints(type(value)).items(), dataclasses.fields(value), strict=True)
            if not any(map(leave_out, marks(hint)))
        }
    if isinstance(value, Mapping):
        return {key: plain(inner, leave_out) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, leave_out) for inner in value]
    return value


def leaves(value: Any, prefix: str = "", outer: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Walk through the fields of settings that are no dataclasses themselves.

    Args:
        value: A settings dataclass.
        prefix: Put in front of the keys, with a dot.
        outer: Marks of the field that the dataclass is in.

    Yields:
        Dotted key, plain value, and the marks of the field and of those around it.
    """
    for (key, hint), field in zip(hints(type(value)).items(), dataclasses.fields(value), strict=True):
        name, inner = f"{prefix}.{key}" if prefix else key, getattr(value, field.name)
        carried = (*outer, *marks(hint))
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, name, carried)
        else:
            yield name, plain(inner, lambda mark: False), carried
