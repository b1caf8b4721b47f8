"""What a user names as an output: refused before anything is computed, or written by one process at a time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from draft.errors import ConfigError, DraftError, StageError
from draft.outputs import check_output, publish
from draft.writing import put
from draft_cli.app import app

NAME = "lora_unet_mid_block_attentions_0_proj_in"
WINDOWS = sys.platform == "win32"


def adapter(path: Path, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, 6, generator=generator), torch.randn(6, 2, generator=generator)
    save_file({f"{NAME}.lora_down.weight": down, f"{NAME}.lora_up.weight": up}, path)
    return path


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """What is no regular file, by its kind."""
    paths = {kind: tmp_path / f"{kind}.safetensors" for kind in ("pipe", "socket", "folder", "link", "loop")}
    os.mkfifo(paths["pipe"])
    paths["folder"].mkdir()
    (paths["folder"] / "kept").write_text("kept")
    paths["link"].symlink_to("/dev/null")
    paths["loop"].symlink_to(paths["loop"])
    here = Path.cwd()
    os.chdir(tmp_path)  # the path of a socket may have 100 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.safetensors")
        os.chdir(here)
        yield paths


@pytest.mark.skipif(WINDOWS, reason="there are no pipes, sockets and devices in a folder")
@pytest.mark.parametrize("command", ["mix", "convert", "resize", "reproduce"])
def test_only_regular_files_are_replaced(tmp_path: Path, special: dict[str, Path], command: str) -> None:
    source = adapter(tmp_path / "a.safetensors")
    if command == "reproduce":
        CliRunner().invoke(app, ["mix", str(source), "-o", str(tmp_path / "m.safetensors")], catch_exceptions=False)
        source = tmp_path / "m.safetensors"
    arguments = [command, str(source), *(["--rank", "1"] if command == "resize" else []), "--force", "-o"]
    for path in special.values():
        before = os.lstat(path)
        result = CliRunner().invoke(app, [*arguments, str(path)])
        assert isinstance(result.exception, DraftError), (path, result.exception)
        after = os.lstat(path)
        assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    with pytest.raises(StageError, match="the output is a device, which a file cannot replace"):
        check_output(Path("/dev/null"), overwrite=True)
    assert os.listdir(special["folder"]) == ["kept"]


@pytest.mark.parametrize("command", ["mix", "convert", "reproduce"])
@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/..", "n" * 300 + ".safetensors", "a.safetensors/x"])
def test_an_output_without_a_usable_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter(tmp_path / "b.safetensors")
    assert CliRunner().invoke(app, ["mix", "b.safetensors", "-o", "a.safetensors"]).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for force in ([], ["--force"]):
        result = CliRunner().invoke(app, [command, "a.safetensors", "-o", name, *force])
        assert isinstance(result.exception, DraftError), result.exception
        assert result.exit_code
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_name_made_of_long_names_is_one_that_file_systems_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [adapter(tmp_path / f"{letter * 118}.safetensors", seed).name for seed, letter in enumerate("éü")]
    result = CliRunner().invoke(app, ["mix", *names], catch_exceptions=False)
    assert result.exit_code == 0 and len(list(tmp_path.iterdir())) == 3
    # The suffix, too, is part of the name.
    with publish(tmp_path / f"a.{'s' * 250}") as partial:
        partial.write_text("whole")
    assert (tmp_path / f"a.{'s' * 250}").read_text() == "whole"


@pytest.mark.skipif(WINDOWS, reason="folders have no such permissions")
def test_a_folder_that_may_not_be_entered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        source, closed = adapter(folder / "a.safetensors"), folder / "closed"
        source.chmod(0o644)
        closed.mkdir(0o600)
        root = os.geteuid() == 0  # whom permissions do not bind
        arguments = ["mix", str(source), "-o", str(closed / "o.safetensors")]
        CliRunner().invoke(app, ["mix", str(source), "-o", str(folder / "warm.safetensors")])
        if root:
            os.chown(closed, 65534, 65534)
            os.seteuid(65534)
        try:
            for path, where in ((source, closed / "o.safetensors"), (closed / "a.safetensors", folder / "o")):
                result = CliRunner().invoke(app, ["mix", str(path), "-o", str(where)])
                assert isinstance(result.exception, DraftError) and "ermission denied" in str(result.exception)
            assert arguments and not isinstance(CliRunner().invoke(app, arguments).exception, OSError)
        finally:
            if root:
                os.seteuid(0)
        closed.chmod(0o700)
        assert os.listdir(closed) == []


HOLDER = """
import sys, time
from pathlib import Path
from draft.outputs import publish
with publish(Path(sys.argv[1]), folder=sys.argv[2] == "folder") as partial:
    if sys.argv[2] == "folder":
        partial.mkdir()
        (partial / "half").write_text("half")
    else:
        partial.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writing() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are in the middle of a write."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def begin(path: Path, kind: str, processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout and process.stdout.readline() == "writing\n"
    return process


def test_of_two_processes_with_one_output_the_second_is_told(
    tmp_path: Path, writing: list[subprocess.Popen[str]]
) -> None:
    source, target = adapter(tmp_path / "a.safetensors"), tmp_path / "o.safetensors"
    begin(target, "file", writing)
    for force in ([], ["--force"]):
        result = CliRunner().invoke(app, ["mix", str(source), "-o", str(target), *force])
        assert str(result.exception).startswith(f"{target}: another process is writing to it")
    # Another output beside it is nobody else's, and takes nothing away from the first.
    assert CliRunner().invoke(app, ["mix", str(source), "-o", str(tmp_path / "p.safetensors")]).exit_code == 0
    assert [path.read_text() for path in tmp_path.glob(".o.*.partial.safetensors")] == ["half"]


def test_what_came_to_be_there_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "o"

    def second(*, links: bool) -> None:
        if not links:  # as on a disk that has none
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
        with publish(path, overwrite=False) as partial:
            partial.write_text("second")
            path.write_text("first")

    for links in (True, False):
        with pytest.raises(ConfigError, match="the output is already there"):
            second(links=links)
        assert [file.name for file in tmp_path.iterdir()] == ["o"] and path.read_text() == "first"
        path.unlink()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_write_beside_it(
    tmp_path: Path, writing: list[subprocess.Popen[str]], kind: str
) -> None:
    killed, alive = (begin(tmp_path / name, kind, writing) for name in ("killed", "alive"))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (tmp_path / ".mine.partial").write_text("a user's own")
    assert len(list(tmp_path.iterdir())) == 5
    with publish(tmp_path / "next") as partial:
        partial.write_text("next")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 4 and {".mine.partial", "next"} < set(names) and alive.poll() is None
    assert all("alive" in name for name in set(names) - {".mine.partial", "next"})
    alive.kill()
    alive.wait()
    with publish(tmp_path / "alive", folder=False) as partial:
        partial.write_text("again")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.partial", "alive", "next"]


def test_a_folder_is_replaced_as_one_with_what_only_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "peft"
    (path / "notes").mkdir(parents=True)
    for name, text in (("weights", "old"), ("README.md", "kept"), ("notes/a", "kept")):
        (path / name).write_text(text)
    with publish(path, folder=True) as partial:
        partial.mkdir()
        (partial / "weights").write_text("new")
        (partial / "config").write_text("new")
        assert sorted(os.listdir(path)) == ["README.md", "notes", "weights"]
    assert {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()} == {
        "weights": "new",
        "config": "new",
        "README.md": "kept",
        "notes/a": "kept",
    }
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_put_aside_when_its_process_died_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "peft"
    path.mkdir()
    (path / "weights").write_text("old")
    code = """
import os, sys
from pathlib import Path
from draft.outputs import publish
rename, count = os.rename, []
def dying(*paths):
    rename(*paths)
    os._exit(1)  # after the first of the two names has changed
os.rename = dying
with publish(Path(sys.argv[1]), folder=True) as partial:
    partial.mkdir()
    (partial / "weights").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 1
    assert not path.exists()
    with publish(tmp_path / "other") as partial:
        partial.write_text("other")
    assert (path / "weights").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "peft"]


def test_a_folder_that_is_no_adapter_is_not_replaced_by_one(tmp_path: Path) -> None:
    source, target = adapter(tmp_path / "a.safetensors"), tmp_path / "papers"
    target.mkdir()
    command = ["mix", str(source), "--format", "peft", "--force", "-o", str(target)]
    assert CliRunner().invoke(app, command).exit_code == 0  # an empty one
    assert sorted(os.listdir(target)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert CliRunner().invoke(app, command).exit_code == 0  # an adapter
    for name in os.listdir(target):
        (target / name).rename(target / f"{name}.pdf")
    result = CliRunner().invoke(app, command)
    assert "the folder holds no adapter" in str(result.exception) and len(os.listdir(target)) == 2


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with publish(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and path.read_text() == "old"
    (tmp_path / "b").write_text("b")
    put(tmp_path / "b", path)
    assert path.read_text() == "b"
