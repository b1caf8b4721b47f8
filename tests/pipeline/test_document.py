"""YAML is read as people mean it, and every key knows its line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from draft.errors import ConfigError
from draft.pipeline.document import dump_yaml, parse_document, parse_value

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12) | st.sampled_from(
    ["no", "on", "y", "1e-4", "12:30", "0x1f", "2026-01-01", "~", "null", "???", "${a.b}", "a: b", "# c", "<<", "1_000"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz-. "), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), VALUES, min_size=1, max_size=3))
def test_what_is_dumped_reads_back_unchanged(data: dict) -> None:
    document, errors = parse_document(dump_yaml(data), "x.yaml")
    assert not errors
    assert document.data == data


@pytest.mark.parametrize(
    "text",
    ["1e-4", "1.0e-4", "4E5", "-2", "+3", "0.5", ".5", "5.", "1e3", "-1.5e-3", ".inf", "0", "true", "null", "text"],
)
def test_numbers_are_read_as_omegaconf_reads_them(text: str) -> None:
    ours, theirs = parse_value(text), OmegaConf.from_dotlist([f"x={text}"])["x"]
    assert (ours, type(ours)) == (theirs, type(theirs))


@pytest.mark.parametrize("text", ["no", "on", "yes", "12:30", "2026-01-01", "1_000", "0b11", "v1"])
def test_what_only_yaml_1_1_takes_for_something_else_stays_text(text: str) -> None:
    assert parse_value(text) == text


def test_special_values() -> None:
    assert parse_value("") is None
    assert parse_value("010") == 10
    assert parse_value("0x1F") == 31
    assert math.isnan(parse_value(".nan"))
    assert parse_value("{a: [1, b]}") == {"a": [1, "b"]}


def test_every_key_and_item_knows_its_line() -> None:
    text = "a: 1\nb:\n  - x\n  - y: 2\n    z: {k: 3}\n512: n\n"
    document, _ = parse_document(text, "f.yaml")
    assert document.data == {"a": 1, "b": ["x", {"y": 2, "z": {"k": 3}}], "512": "n"}
    assert document.place(("b", 1, "z", "k")) == "f.yaml:5"
    assert document.place(("b", 0)) == "f.yaml:3"
    assert document.place(("b", 1, "absent", "deep")) == "f.yaml:4"
    assert document.place(("512",)) == "f.yaml:6"
    assert document.place(("nowhere",)) == "f.yaml"


def test_anchors_and_merge_keys_work_and_are_no_duplicates() -> None:
    document, errors = parse_document("a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  q: 3\nc: *x\n", "f.yaml")
    assert not errors
    assert document.data["b"] == {"p": 1, "q": 3}
    assert document.data["c"] == {"p": 1, "q": 2}


def test_a_duplicate_key_is_an_error_wherever_it_is() -> None:
    _, errors = parse_document("a:\n  b: 1\n  c: 2\n  b: 3\n", "f.yaml")
    assert [str(error) for error in errors] == ["f.yaml:4: duplicate key 'b'\n  hint: the first is in line 2"]
    _, errors = parse_document("a: {b: 1, b: 2}\n", "f.yaml")
    assert [str(error) for error in errors] == ["f.yaml:1: duplicate key 'b'\n  hint: the first is in line 1"]


@pytest.mark.parametrize(
    "text", ["a: &x [*x]\n", "a: !!python/object:os.system {}\n", "? [a]\n: b\n", "a: 'x\n", "\tb: 1\n", "\x1f"]
)
def test_strange_files_are_errors_with_a_place_and_not_crashes(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "f.yaml")
    assert caught.value.where.startswith("f.yaml")


@given(st.text(max_size=40))
def test_any_text_is_a_document_or_an_error(text: str) -> None:
    place = "f.yaml"
    try:
        parse_document(text, place)
    except ConfigError as error:
        place = error.where
    assert place.startswith("f.yaml")
