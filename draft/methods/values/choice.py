"""The methods that a file may name: a list that is read whenever a schema is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ByKind:
    """A mark on a field that holds one of several dataclasses, chosen by its key `kind`.

    The classes are in a list that may grow, unlike those of a union. It is read when pydantic makes a schema and when
    the keys of a file are listed.

    Args:
        classes: Frozen dataclasses, each with a field `kind: Literal["name"] = "name"`.
    """

    classes: Sequence[type[Any]]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """The schema of a discriminated union, as pydantic writes it; there is no pydantic down here."""
        choices = {kind_of(each): handler.generate_schema(each) for each in self.classes}
        return {"type": "tagged-union", "choices": choices, "discriminator": "kind"}


def kind_of(value: type[Any]) -> str:
    """The name of a class in a file: the default of its field `kind`."""
    return next(str(field.default) for field in fields(value) if field.name == "kind")
