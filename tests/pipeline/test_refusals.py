"""What the operating system refuses ends a run with the path, what is needed and the way to go on, not with a bug."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest

from draft.errors import ResourceError, StageError, memory_shortage, system_error
from draft.pipeline.run import run_pipeline

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("raised", "what"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full (at"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your share of the disk is used up (at"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "permission denied (at '/a/b')"),
        (OSError(errno.EMFILE, "Too many open files", "/a/b"), "too many files are open (at '/a/b')"),
        (OSError(errno.ESTALE, "Stale file handle"), "stale file handle (at"),
        (MemoryError(), "this machine's memory is full"),
        (RuntimeError(ALLOCATOR), "this machine's memory is full, and 4096 bytes more are wanted"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "this machine's memory is full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_the_system_refuses_to_a_stage_names_the_need_and_the_way_to_go_on(
    workshop, raised: BaseException, what: str
) -> None:
    workshop.failing["mix"] = raised
    with pytest.raises(ResourceError) as caught:
        workshop.run()
    assert caught.value.what.startswith(what) and caught.value.where == "stage 'mix'"
    assert caught.value.needs and caught.value.__cause__ is raised
    runs = workshop.folder / "runs"
    assert caught.value.__notes__ == [f"resume: draft run {workshop.file} --runs-dir {runs}"]
    if what.endswith("(at"):  # the system does not name the file that it has no room for
        assert str(workshop.runs / "mix.partial") in caught.value.what
    workshop.failing.clear()
    workshop.ran()
    workshop.run()
    assert workshop.ran() == ["mix", "evaluate"]


def test_a_full_disk_is_refused_between_stages_too(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        workshop.run()
    assert str(workshop.runs / "config.yaml") in caught.value.what
    assert "free space on that disk" in caught.value.needs and "MB are free" in caught.value.needs
    assert caught.value.__notes__[0].startswith("resume: draft run")
    monkeypatch.undo()
    workshop.run()


def test_a_full_disk_offers_no_rehearsal_which_would_not_fit_either(workshop) -> None:
    workshop.failing["train"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ResourceError) as caught:
        workshop.run()
    assert "--rehearse" not in caught.value.hint


def test_a_run_whose_folder_is_removed_meanwhile_names_it(workshop) -> None:
    def work(job) -> dict[str, float]:
        shutil.rmtree(workshop.folder / "runs")
        return {}

    with pytest.raises(ResourceError, match="no such file or folder") as caught:
        workshop.run(executors={"train": work})
    assert str(workshop.runs / "train.partial") in caught.value.what


def test_a_bug_stays_a_bug() -> None:
    for error in (RuntimeError("a bug"), KeyError("a"), OSError("no number"), ImportError("no module named x")):
        assert system_error(error) is None
        assert memory_shortage(error) is None


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 3000], ids=["a name", "a path"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_results_folder_longer_than_the_file_system_allows_is_refused(workshop, name: str, dry_run: bool) -> None:
    with pytest.raises(StageError, match="cannot write results there: File name too long") as caught:
        run_pipeline(workshop.file, runs_dir=workshop.folder / name, dry_run=dry_run)
    assert caught.value.where == "--runs-dir" and len(str(caught.value)) < 600
    assert sorted(path.name for path in workshop.folder.iterdir()) == ["demo.yaml", "held.txt", "model"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files that the system reports")
def test_a_limit_on_the_size_of_files_ends_a_real_command_with_one_line(workshop) -> None:
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "sys.argv = ['draft', 'run', sys.argv[1], '--runs-dir', sys.argv[2]]\n"
        "from draft_cli.start import main\nmain()\n"
    )
    runs = workshop.folder / "runs"
    done = subprocess.run(
        [sys.executable, "-c", code, str(workshop.file), str(runs)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: a file would become larger than is allowed (at ")
    assert f"resume: draft run {workshop.file} --runs-dir {runs}" in done.stderr


def test_what_a_killed_process_was_writing_is_removed_by_the_next_run(workshop) -> None:
    workshop.failing["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        workshop.run()
    partial = workshop.runs / "train.partial"
    (partial / "checkpoints").mkdir()
    left = [
        workshop.runs / ".config.123.partial.yaml",
        partial / ".adapter.123.partial.safetensors",
        partial / "checkpoints" / ".step-00000002.123.partial.ckpt",
    ]
    for file in left:
        file.write_text("half")
    theirs = workshop.runs / ".notes.partial.txt"
    theirs.write_text("a file of the user's")
    workshop.failing.clear()
    workshop.run()
    assert not any((workshop.runs / "train" / file.name).exists() for file in left)
    assert not left[0].exists() and not (workshop.runs / "train" / "checkpoints" / left[2].name).exists()
    assert theirs.exists()


def test_a_finished_stage_keeps_what_an_interrupted_one_goes_on_from_until_it_has_its_name(
    workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(job) -> dict[str, float]:
        figures = workshop.execute(job)
        (job.folder / "checkpoints").mkdir(exist_ok=True)
        (job.folder / "checkpoints" / "step-00000002.ckpt").write_text("state")
        (job.folder / "checkpoints" / "step-00000004.ckpt").write_text("state")
        return dict(figures)

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("draft.pipeline.run.publish", killed)
        with pytest.raises(KeyboardInterrupt):
            workshop.run(executors={**workshop.executors, "train": work})
    partial, final = workshop.runs / "train.partial", workshop.runs / "train"
    assert len(list((partial / "checkpoints").iterdir())) == 2
    assert workshop.plan()[0] == "train: will continue (was interrupted)"
    with monkeypatch.context() as patch:
        patch.setattr("draft.pipeline.run.tidy", killed)
        with pytest.raises(KeyboardInterrupt):
            workshop.run(executors={**workshop.executors, "train": work})
    assert len(list((final / "checkpoints").iterdir())) == 2
    assert workshop.plan()[0] == "train: reused"
    workshop.run()
    assert [path.name for path in (final / "checkpoints").iterdir()] == ["step-00000004.ckpt"]
    assert not (final / "begun.json").exists() and not os.path.lexists(partial)
