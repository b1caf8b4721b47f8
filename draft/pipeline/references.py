"""References of the form ``${out:stage.output}``: one in a text, and all in plain data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from draft.pipeline.document import Keys

_REFERENCE = re.compile(r"\$\{out:([^{}]*)\}")


@dataclass(frozen=True)
class Reference:
    """An output of another stage.

    Args:
        stage: That stage's name.
        output: The output's name.
    """

    stage: str
    output: str

    def __str__(self) -> str:
        return f"${{out:{self.stage}.{self.output}}}"


def parse_reference(text: str) -> Reference | None:
    """The reference that a text is.

    Args:
        text: Any text.

    Returns:
        The reference, or None if the text is none.

    Example:
        >>> parse_reference("${out:train.adapter}")
        Reference(stage='train', output='adapter')
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    stage, _, output = match[1].strip().partition(".")
    return Reference(stage, output)


def mentions(data: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Every text in plain data that has a reference in it; prompts are taken as they are written.

    Args:
        data: Plain data.
        keys: Where it is.

    Yields:
        Where the text is, and the text.
    """
    if keys[-1:] == ("prompts",):
        return
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from mentions(value, (*keys, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from mentions(value, (*keys, index))
    elif isinstance(data, str) and "${out:" in data:
        yield keys, data


def upstream(data: Any) -> list[str]:
    """The names of the stages that a stage refers to, sorted."""
    references = (parse_reference(text) for _, text in mentions(data))
    return sorted({reference.stage for reference in references if reference})
