"""Prompt files of every kind give prompts with columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draft.prompts import load_prompts
from draft.types import Prompts


def test_a_text_file_has_a_prompt_per_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\ufeffa cat\n\n# a comment\n  a dog, ${x}  \n", encoding="utf-8")
    assert load_prompts(file) == Prompts(["a cat", "a dog, ${x}"])


def test_tables_have_columns_of_text(tmp_path: Path) -> None:
    expected = Prompts(["a cat, big", "a dog"], {"target": ["cat", "dog"], "n": ["1", "2"]})
    (tmp_path / "a.csv").write_text('prompt,target,n\n"a cat, big",cat,1\na dog,dog,2\n')
    assert load_prompts(tmp_path / "a.csv") == expected
    rows = [{"prompt": "a cat, big", "target": "cat", "n": 1}, {"target": "dog", "prompt": "a dog", "n": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert load_prompts(tmp_path / "a.jsonl") == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(WORDS, st.text(st.characters(exclude_categories=("Cs", "Cc")))), min_size=1, max_size=5))
def test_csv_and_jsonl_of_the_same_rows_are_the_same_prompts(folder: Path, rows: list[tuple[str, str]]) -> None:
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("prompt", "x"), *rows])
    lines = [json.dumps({"prompt": prompt, "x": x}) for prompt, x in rows]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert load_prompts(folder / "a.csv") == load_prompts(folder / "a.jsonl")
    assert load_prompts(folder / "a.csv") == Prompts([p for p, _ in rows], {"x": [x for _, x in rows]})
