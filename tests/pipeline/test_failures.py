"""A run that fails or is stopped never leaves half a result that looks whole, and the next one goes on from it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from draft.errors import DraftError, StageError
from draft.files import locked
from draft.pipeline.interrupt import resume_command
from draft.pipeline.run import run_pipeline


def test_a_failure_leaves_only_a_partial_folder_and_the_way_to_go_on(workshop) -> None:
    workshop.failing["mix"] = StageError("the disk is full", hint="make room")
    with pytest.raises(StageError) as caught:
        workshop.run("stages.evaluate.shown=3", force=True)
    assert str(caught.value) == "stage 'mix': the disk is full\n  hint: make room"
    runs = workshop.folder / "runs"
    assert caught.value.__notes__ == [f"resume: draft run {workshop.file} stages.evaluate.shown=3 --runs-dir {runs}"]
    assert sorted(path.name for path in workshop.runs.iterdir()) == [".lock", "config.yaml", "mix.partial", "train"]
    workshop.failing.clear()
    workshop.ran()
    assert workshop.plan("stages.evaluate.shown=3")[:2] == ["train: reused", "mix: will continue (was interrupted)"]
    workshop.run("stages.evaluate.shown=3")
    assert workshop.jobs[0].folder.name == "mix.partial"
    assert workshop.ran() == ["mix", "evaluate"]
    assert (workshop.runs / "mix" / "half").exists(), "an interrupted stage goes on in its folder"


def test_a_stage_that_leaves_an_output_out_has_failed(workshop) -> None:
    with pytest.raises(StageError, match="stage 'train' ended without writing adapter.safetensors, metrics.jsonl"):
        workshop.run(executors={"train": lambda job: {}})
    assert not (workshop.runs / "train").exists()


def test_an_interrupted_forced_run_continues_instead_of_reusing_the_old_result(workshop) -> None:
    workshop.run()
    workshop.failing["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        workshop.run(force=True)
    assert "resume: draft run" in caught.value.__notes__[0]
    assert "--force" not in caught.value.__notes__[0]
    assert workshop.plan()[0] == "train: will continue (was interrupted)"
    assert workshop.plan(fresh=True)[0] == "train: reused"
    assert (workshop.runs / "train" / "adapter.safetensors").exists()


@pytest.mark.parametrize("options", [{"fresh": True}, {"overrides": ["seed=9"]}, {"force": True}])
def test_what_another_run_began_is_thrown_away(workshop, options: dict) -> None:
    workshop.failing["train"] = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom") as caught:
        workshop.run()
    assert caught.value.__notes__, "a bug's traceback says how to go on, too"
    workshop.failing.clear()
    workshop.run(*options.pop("overrides", ()), **options)
    assert not (workshop.runs / "train" / "half").exists()


def test_the_resume_command_is_quoted_for_a_shell() -> None:
    command = resume_command("my file.yaml", ["stages.a.prompts=[a cat]"], runs_dir=Path("runs"), only="a")
    assert command == "draft run 'my file.yaml' 'stages.a.prompts=[a cat]' --only a"


def test_a_crash_between_two_renames_is_mended(workshop) -> None:
    workshop.run()
    (workshop.runs / "train").rename(workshop.runs / "train.old")
    workshop.ran()
    workshop.run()
    assert workshop.ran() == []
    assert not (workshop.runs / "train.old").exists()


def test_two_runs_do_not_write_one_folder(workshop) -> None:
    workshop.runs.mkdir(parents=True)
    with locked(workshop.runs), pytest.raises(StageError) as caught:
        workshop.run()
    assert str(caught.value) == (
        f"another run is writing to {str(workshop.runs)!r}\n  hint: wait for it, or give this one another --runs-dir"
    )


def test_a_run_in_a_thread_leaves_signals_alone(workshop) -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=workshop.run)
    thread.start()
    thread.join()
    assert workshop.ran() == ["train", "mix", "evaluate"]
    assert signal.getsignal(signal.SIGTERM) is before


CHILD = """
import signal, sys, time
from pathlib import Path
from draft.pipeline.run import run_pipeline

# A shell has its background jobs ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def slow(job):
    (job.folder / "half").write_text("half")
    time.sleep(60)

run_pipeline(sys.argv[1], runs_dir=Path(sys.argv[2]), executors={"train": slow})
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_killed_in_the_middle_leaves_a_partial_folder_only(workshop, number: signal.Signals) -> None:
    runs = workshop.folder / "runs"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(workshop.file), str(runs)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (workshop.runs / "train.partial" / "half").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert (number == signal.SIGKILL) != ("resume: draft run" in said)
    assert not (workshop.runs / "train").exists()
    assert workshop.plan()[0] == "train: will continue (was interrupted)"
    workshop.run(only="train")  # the lock of the dead process is gone
    assert workshop.ran() == ["train"]


def test_a_results_folder_that_cannot_be_is_told(workshop) -> None:
    (workshop.folder / "file").write_text("")
    with pytest.raises(StageError, match="cannot write results there: Not a directory"):
        workshop.run(runs_dir=workshop.folder / "file")


def test_nothing_is_written_for_a_file_with_errors(workshop) -> None:
    workshop.file.write_text(workshop.file.read_text().replace("kind: mix", "kind: mox"))
    with pytest.raises(DraftError):
        run_pipeline(workshop.file, runs_dir=workshop.folder / "runs")
    assert not (workshop.folder / "runs").exists()
