"""Prompts are packed, whatever their number: as a sequence, as a file, as a digest."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draft.prompts import load_prompts, prompts_digest
from draft.types import Prompts, Texts


@given(st.lists(st.text()))
def test_texts_are_the_sequence_that_they_were_made_of(texts: list[str]) -> None:
    packed = Texts(texts)
    assert (list(packed), len(packed)) == (texts, len(texts))
    assert list(packed[1:-1]) == texts[1:-1]
    assert [packed[-1 - i] for i in range(len(texts))] == texts[::-1]
    assert packed == Texts(iter(texts)) and hash(packed) == hash(Texts(texts))


def test_an_index_outside_is_an_error() -> None:
    with pytest.raises(IndexError, match=r"there are 1 texts \(got index 1\)"):
        Texts(["a"])[1]


def test_empty_texts_at_the_borders_make_a_difference() -> None:
    assert Texts(["ab", ""]) != Texts(["a", "b"]) != Texts(["", "ab"])


@given(st.lists(st.tuples(st.text(), st.text())))
def test_the_digest_is_that_of_the_same_as_json(rows: list[tuple[str, str]]) -> None:
    texts, targets = [text for text, _ in rows], [target for _, target in rows]
    plain = {"prompts": texts, "columns": {"b": targets, "a": texts}}
    expected = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert prompts_digest(Prompts(texts, {"b": targets, "a": texts})) == expected


def test_each_column_keeps_its_own_values_in_every_part() -> None:
    prompts = Prompts(["a", "b", "c"], {"object": ["cat", "dog", "cow"], "other": ["hat", "bed", "sun"]})
    for part in (prompts.take([2, 0]), prompts[::-2], prompts.prefixed("x ")[::-2]):
        assert (part.column("object"), part.column("other")) == (["cow", "cat"], ["sun", "hat"])


def test_a_line_of_jsonl_may_hold_other_separators_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a\u2028cat"}\n{"prompt": "a dog"}\n', encoding="utf-8")
    assert list(load_prompts(file)) == ["a\u2028cat", "a dog"]


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
def test_a_file_takes_eight_bytes_a_line_besides_its_text(tmp_path: Path, ending: str) -> None:
    lines = [f"a photograph of thing number {number} in a room" for number in range(20_000)]
    file = tmp_path / f"prompts.{ending}"
    written = {
        "txt": "\n".join(lines),
        "csv": "\n".join(["prompt", *lines]),
        "jsonl": "\n".join(json.dumps({"prompt": line}) for line in lines),
    }
    file.write_text(written[ending], encoding="utf-8")
    tracemalloc.start()
    prompts = load_prompts(file)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(prompts) == lines
    assert kept - sum(map(len, lines)) < 10 * len(lines), "8 bytes, and what an array has in reserve"
