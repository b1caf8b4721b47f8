"""Interpolations have OmegaConf's values, where it may be asked, and mark what comes from the environment."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from draft.pipeline.document import Document
from draft.pipeline.interpolation import Interpolations
from draft.pipeline.resolve import plain_data
from draft.pipeline.resolvers import UnknownName

VALUES: dict[str, Any] = {
    "a": "text",
    "n": 3,
    "f": 0.5,
    "t": True,
    "none": None,
    "name": "a",
    "deep": {"list": ["x", {"y": "${n}"}], "sibling": "${.list[0]}", "up": "${..a}"},
    "chain": "${deep.list.1.y}",
    "joined": "<${a}|${n}|${f}|${t}|${none}>",
}
TEXTS = [
    "${a}",
    "${n}",
    "${f}",
    "${none}",
    "${deep}",
    "${deep.list}",
    "${deep.list[1].y}",
    "${deep.list.0}",
    "${deep.sibling}",
    "${deep.up}",
    "${chain}",
    "${joined}",
    "x${a}y${n}",
    "${${name}}",
    "${deep.${oc.decode:list}[0]}",
    "\\${a}",
    "\\\\${a}",
    "a\\b ${a}",
    "$a {b} ${a}",
    "${oc.decode:'[1, {a: b}, null, 1e-3, true]'}",
    "${oc.decode:${n}1}",
    "${oc.select:a}",
    "${oc.select:nothing}",
    "${oc.select:nothing, 7}",
    "${oc.select:nothing, ${a}}",
    "${oc.create:{x: 1, y: [${n}, '${a} b', \"c\"]}}",
    "${oc.dict.keys:deep}",
    "${oc.dict.values:deep}",
    "${oc.env:DRAFT_TEST_WORD}",
    "${oc.env:DRAFT_TEST_MISSING, other}",
    "${oc.env:DRAFT_TEST_MISSING, null}",
    "${oc.env:DRAFT_TEST_MISSING, 5}",
    "${ a }",
    "${oc.env:DRAFT_TEST_MISSING,'a: b, c'}",
]


def ours(text: str) -> Any:
    raw = {**VALUES, "it": text}
    return Interpolations(raw).value(("it",)).value


def theirs(text: str) -> Any:
    config = OmegaConf.create({**VALUES, "it": text})
    return OmegaConf.to_container(config, resolve=True)["it"]  # type: ignore[index,call-overload]


@pytest.fixture(autouse=True)
def word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFT_TEST_WORD", "a word")
    monkeypatch.delenv("DRAFT_TEST_MISSING", raising=False)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_value_that_omegaconf_gives_it(text: str) -> None:
    mine, other = ours(text), theirs(text)
    assert (mine, type(mine)) == (other, type(other))


PIECES = st.sampled_from(["${a}", "${n}", "${joined}", "\\${", " ", "x", "}", "\\\\${a}", "é", "${${name}}", ":"])


@given(st.lists(PIECES, min_size=2, max_size=6).map("".join))
def test_joined_pieces_are_what_omegaconf_makes_of_them(text: str) -> None:
    assert ours(text) == theirs(text)


@given(st.text("${}[].:,'\"\\ abn0", max_size=14))
def test_any_text_has_a_value_or_an_error_of_a_known_kind(text: str) -> None:
    try:
        value = ours(text)
    except (ValueError, UnknownName):
        value = None
    assert value is None or isinstance(value, str | int | float | list | dict)


def test_what_is_looked_up_is_newly_made() -> None:
    raw = {"list": ["${n}"], "n": 1, "one": "${list}", "two": "${list}"}
    data, broken, entered = plain_data(raw, Document("x", {}), [])
    assert (broken, entered) == ([], {})
    data["one"].append(2)
    assert data["two"] == data["list"] == [1]


def test_marks_are_at_the_place_where_a_value_ends_up() -> None:
    raw = {
        "w": "${oc.env:DRAFT_TEST_WORD}",
        "m": {"x": ["plain", "in ${w}"]},
        "copy": "${m}",
        "inner": "${copy.x[1]}",
        "plain": "${m.x[0]}",
        "default": "${oc.env:DRAFT_TEST_MISSING, other}",
        "text": "${oc.decode:\"{a: '${w}', b: 1}\"}",
    }
    data, _, entered = plain_data(raw, Document("x", {}), [])
    assert data["inner"] == "in a word" and data["text"] == {"a": "a word", "b": 1}
    sources = {".".join(map(str, keys)): each.source for keys, each in entered.items()}
    assert sources == {
        "w": "${oc.env:DRAFT_TEST_WORD}",
        "m.x.1": "in ${oc.env:DRAFT_TEST_WORD}",
        "copy.x.1": "in ${oc.env:DRAFT_TEST_WORD}",
        "inner": "in ${oc.env:DRAFT_TEST_WORD}",
        "text.a": "???",
        "text.b": "???",
    }


def test_a_resolver_that_draft_does_not_know_is_not_called() -> None:
    for name in ("oc.coerce:os.path.x,1", "oc.deprecated:a", "eval:1"):
        with pytest.raises(ValueError, match="unknown resolver"):
            ours(f"${{{name}}}")
    with pytest.raises(ValueError, match=r"environment variable 'DRAFT_TEST_MISSING' is not set"):
        ours("${oc.env:DRAFT_TEST_MISSING}")
    assert "DRAFT_TEST_MISSING" not in os.environ
