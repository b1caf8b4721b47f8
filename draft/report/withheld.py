"""What pages and reports must not contain, whatever its way there: values from the environment, local folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

TELLING = 8
"""Characters from which on a value is replaced inside of longer texts; a shorter one may be a word like any other."""


@dataclass(frozen=True)
class _Withheld:
    """What is replaced.

    Args:
        values: A text from the environment, to what is written for it.
        folders: The beginning of a path, to what is written for it.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)


_NOTHING = _Withheld()
_WITHHELD: ContextVar[_Withheld | None] = ContextVar("withheld", default=None)


@contextmanager
def withholding(values: Mapping[str, str], folders: Sequence[Path]) -> Iterator[None]:
    """Leave texts out of all pages and reports that the block writes.

    Args:
        values: Texts from the environment, to what is written for each.
        folders: Folders of this machine; what lies in them is written from there.

    Yields:
        Nothing.
    """
    home = Path(os.path.expanduser("~"))
    beginnings = {f"{folder}{os.sep}": "" for folder in folders if len(folder.parts) > 1}
    beginnings |= {f"{home}{os.sep}": f"~{os.sep}"} if len(home.parts) > 1 else {}
    token = _WITHHELD.set(_Withheld({text: source for text, source in values.items() if text}, beginnings))
    try:
        yield
    finally:
        _WITHHELD.reset(token)


def without_withheld(value: Any) -> Any:
    """Plain data without what is withheld.

    Args:
        value: Mappings, sequences, text, numbers and None.

    Returns:
        The data, the same where there is nothing to leave out.
    """
    withheld = _WITHHELD.get() or _NOTHING
    if not withheld.values and not withheld.folders:
        return value
    if isinstance(value, Mapping):
        return {key: without_withheld(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_withheld(item) for item in value]
    if not isinstance(value, str):
        return value
    return withheld.values.get(value) or _replaced(value, withheld, lambda text: text)


def page_without_withheld(page: str) -> str:
    """A finished page without what is withheld."""
    return _replaced(page, _WITHHELD.get() or _NOTHING, escape)


def _replaced(text: str, withheld: _Withheld, encoded: Any) -> str:
    for value in sorted(withheld.values, key=len, reverse=True):
        if len(value) >= TELLING:
            text = text.replace(encoded(value), encoded(withheld.values[value]))
    for folder in sorted(withheld.folders, key=len, reverse=True):
        text = text.replace(encoded(folder), withheld.folders[folder])
    return text
