"""Prompts are packed, whatever their number: as a sequence, as a file, as a digest."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draft.errors import ConfigError
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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.CSV", "prompt,thing\na cat,cat\n"),
        ("p.tsv", "prompt\tthing\na cat\tcat\n"),
        ("p.TSV", "prompt\tthing\na cat\tcat\n"),
        ("p.ndjson", '{"prompt": "a cat", "thing": "cat"}\n'),
        ("p.JSONL", '{"prompt": "a cat", "thing": "cat"}\n'),
    ],
)
def test_a_table_is_read_as_one_whatever_its_ending_is_written_like(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    prompts = load_prompts(tmp_path / name)
    assert list(prompts) == ["a cat"] and list(prompts.column("thing")) == ["cat"]


@pytest.mark.parametrize(
    ("name", "text", "what", "hint"),
    [
        ("p.json", '["a cat"]', "prompt files ending in .json are not read", "with a column 'prompt'"),
        ("p.txt", "a dog\na cat\0\n", "p.txt:2: the prompt file holds a NUL character", "is it a text file?"),
        ("p.yaml", "- a cat\n", "prompt files ending in .yaml are not read", "one prompt per line"),
        ("p.YML", "- a cat\n", "prompt files ending in .yml are not read", "one prompt per line"),
        ("p.jsonl", '{"prompt": null}\n', "the prompt must be text (got null)", ""),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 5}\n', "the prompt must be text (got 5)", ""),
        ("p.jsonl", '{"prompt": false}\n', "the prompt must be text (got false)", ""),
        ("p.jsonl", "null\n", "every line must be a JSON object (got null)", ""),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}\n', "the key 'prompt' is there more than once", ""),
        ("p.jsonl", '{"prompt": "a\\ud800"}\n', "half a character", ""),
        ("p.jsonl", '{"prompt": ' + "[" * 100_000 + "\n", "not readable as JSON", ""),
        ("p.jsonl", '{"prompt": "a", "n": ' + "9" * 5000 + "}\n", "not readable as JSON", ""),
        ("p.csv", "prompt,thing,thing\na,b,c\n", "the column 'thing' is there more than once", ""),
        ("p.csv", "prompt;thing\na;b\n", "separated by commas (got semicolons: 'prompt;thing')", "save it as .tsv"),
        ("p.csv", "prompt\tthing\na\tb\n", "separated by commas (got tabs", "or call it .tsv"),
        ("p.tsv", "prompt,thing\na,b\n", "separated by tabs (got commas", "save the file with tabs"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, name: str, text: str, what: str, hint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prompts(tmp_path / name)
    assert what in str(caught.value) and hint in caught.value.hint


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
