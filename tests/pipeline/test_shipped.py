"""Every pipeline that ships is one, under any folder, and can be found by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from draft.pipeline.load import find_pipeline, load_pipeline

FILES = sorted((Path(__file__).parents[2] / "pipelines").rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_pipeline_has_no_errors_and_is_named_like_its_file(file: Path) -> None:
    pipeline = load_pipeline(file)
    assert pipeline.name == file.stem


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_pipeline_can_be_rehearsed(file: Path) -> None:
    assert load_pipeline(file, rehearse=True).name == f"{file.stem}-rehearsal"


def test_a_shipped_pipeline_is_found_by_its_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_pipeline("quickstart").name == "quickstart.yaml"
    (tmp_path / "quickstart").write_text("")
    assert find_pipeline("quickstart") == Path("quickstart"), "a file here comes first"
