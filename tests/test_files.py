"""Files: atomic writes, digests, locks, the cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from draft import files
from draft.errors import StageError
from draft.files import cache_folder, locked, replace, safe_name, sha256, weights_file, write_text


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with replace(path) as partial:
            partial.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_file_at_the_end_of_its_block(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replace(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.suffix == ".txt" and partial.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_makes_a_folder_replaces_the_files_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "a").write_text("old")
    (folder / "kept").write_text("kept")
    with replace(folder) as partial:
        partial.mkdir()
        (partial / "a").write_text("new")
    assert {file.name: file.read_text() for file in folder.iterdir()} == {"a": "new", "kept": "kept"}
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_left_is_not_part_of_a_later_write(tmp_path: Path) -> None:
    with replace(tmp_path / "peft") as left:
        left.mkdir()
    left.mkdir()
    (left / "stale").write_text("stale")
    with replace(tmp_path / "peft") as partial:
        partial.mkdir()
        (partial / "a").write_text("new")
    assert [file.name for file in (tmp_path / "peft").iterdir()] == ["a"]


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append("sync"))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), rename(*paths)))
    write_text(tmp_path / "a", "text")
    assert calls == ["sync", "rename", "sync"]


def test_a_name_as_long_as_the_disk_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_text(path, "text")
    assert path.read_text() == "text"


def test_the_digest_of_a_folder_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "a" / "inner" / "x").write_bytes(b"1")
    (tmp_path / "a" / "y").write_bytes(b"2")
    lines = "".join(f"{name}\0{hashlib.sha256(data).hexdigest()}\0" for name, data in (("inner/x", b"1"), ("y", b"2")))
    before = sha256(tmp_path / "a")
    assert before == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "a").rename(tmp_path / "b")
    os.utime(tmp_path / "b" / "y", (0, 0))
    assert sha256(tmp_path / "b") == before
    (tmp_path / "b" / "y").rename(tmp_path / "b" / "z")
    assert sha256(tmp_path / "b") != before


def test_the_digest_of_a_file_can_leave_out_its_head(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"head" + b"rest")
    assert sha256(tmp_path / "a", skip=4) == hashlib.sha256(b"rest").hexdigest()


def test_the_weights_of_an_adapter_are_the_file_or_the_one_in_the_folder(tmp_path: Path) -> None:
    assert weights_file(tmp_path) == tmp_path / "adapter_model.safetensors"
    assert weights_file(tmp_path / "a.safetensors") == tmp_path / "a.safetensors"


def test_a_lock_is_held_against_other_processes_and_dropped_by_the_system_when_one_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from draft.files import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(StageError) as refused, locked(tmp_path, who="run", hint="wait"):
            pass
        holder.kill()
    assert str(refused.value) == f"another run is writing to {str(tmp_path)!r}\n  hint: wait"
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_a_lock_of_a_file_lies_next_to_it(tmp_path: Path) -> None:
    with locked(tmp_path / "a.json"):
        assert [path.name for path in tmp_path.iterdir()] == ["a.json.lock"]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("DRAFT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files._temporary_folder.cache_clear()
    return monkeypatch


def test_the_cache_is_where_the_variables_name_it(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "home" / ".cache" / "draft"
    variables.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "draft"
    variables.setenv("DRAFT_CACHE", "~/own")
    assert cache_folder() == tmp_path / "home" / "own"


def test_a_home_that_cannot_be_written_to_gives_a_temporary_cache_of_ones_own(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("no folder")
    folder = cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder
    folder.chmod(0o777)  # anybody may have put something there
    files._temporary_folder.cache_clear()
    assert cache_folder() not in (folder, tmp_path / "home")


def test_labels_become_harmless_folder_names() -> None:
    assert [safe_name(label) for label in ("a", "../x", "a b", "..", "ü")] == ["a", "_x", "a_b", "_", "ü"]


def test_a_long_label_is_cut_and_stays_apart_from_others() -> None:
    first, second = safe_name("é" * 4000), safe_name("é" * 4000 + "x")
    assert first != second and max(len(first.encode()), len(second.encode())) <= 120
    assert safe_name("a" * 120) == "a" * 120
