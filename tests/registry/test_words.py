"""Types, bounds and findings of pydantic in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from draft.rewards.words import bounds, choices, expected, schema_bounds, schema_type_in_words, shown, type_in_words


@dataclass
class Pair:
    first: int
    from_: str


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "integer"),
        (Annotated[float, Gt(0), Le(1)] | None, "number, greater than 0, at most 1 or null"),
        (Annotated[int, Ge(1), Lt(2**63)], "integer, at least 1"),
        (tuple[str, ...], "list of text"),
        (dict[str, float], "mapping"),
        (Literal["a", "b"], "`a` or `b`"),
        (bool | Literal["auto"], "true or false or `auto`"),
        (Pair, "mapping of `first`, `from`"),
    ],
)
def test_a_type_is_described_with_its_bounds(hint: Any, words: str) -> None:
    assert type_in_words(hint) == words


def test_bounds_and_choices_are_lists_of_words() -> None:
    assert bounds(Annotated[float, Ge(0), Lt(1)] | None) == ["at least 0", "less than 1"]
    assert choices(Literal["a", "b"]) == ["a", "b"] and choices(str) == [] == bounds(str)


class Options(BaseModel):
    count: int = Field(1, ge=1, le=4)
    share: float = Field(0.5, gt=0)
    names: list[str] = Field([], max_length=3)
    on: bool = False


def test_a_json_schema_uses_the_words_of_types() -> None:
    schema = Options.model_json_schema()
    described = {
        name: (schema_type_in_words(entry, schema), schema_bounds(entry))
        for name, entry in schema["properties"].items()
    }
    assert described == {
        "count": ("integer", "1 to 4"),
        "share": ("number", "greater than 0"),
        "names": ("list of text", "at most 3 items"),
        "on": ("true or false", ""),
    }


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, "1", "an integer"),
        (Annotated[float, Gt(0)], -1.0, "greater than 0"),
        (Annotated[float, Le(0.5)], 1.0, "at most 0.5"),
        (Literal["a", "b"], "c", "'a' or 'b'"),
        (tuple[int, ...], 3, "a list"),
    ],
)
def test_what_was_expected_is_said_in_a_few_words(hint: Any, value: Any, words: str) -> None:
    with pytest.raises(ValidationError) as error:
        TypeAdapter(hint).validate_python(value, strict=True)
    assert expected(error.value.errors()[0]) == words


def test_values_are_shown_as_they_are_written_in_yaml_and_cut() -> None:
    assert [shown(value) for value in (None, True, "a", [1, 2])] == ["null", "true", "'a'", "[1, 2]"]
    assert len(shown("x" * 100)) == 60
