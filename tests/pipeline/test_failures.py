"""A run that fails or is stopped never leaves half a result that looks whole, and the next one goes on from it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from draft.errors import DraftError, StageError
from draft.files import locked
from draft.pipeline.cache import read_record
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


@pytest.mark.parametrize(
    ("options", "why"),
    [({"overrides": ["seed=9"]}, "seed changed: 3 -> 9"), ({"force": True}, "forced"), ({"fresh": True}, "")],
    ids=["another seed", "forced", "to be forgotten"],
)
def test_what_another_run_began_is_kept_aside_and_named_before_unless_it_is_to_be_forgotten(
    workshop, options: dict, why: str
) -> None:
    workshop.failing["train"] = RuntimeError("boom")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="boom") as caught:
            workshop.run("stages.train.preview.every=5")
        assert caught.value.__notes__, "a bug's traceback says how to go on, too"
    workshop.failing.clear()
    (workshop.runs / "train.kept-1").mkdir()
    overrides = options.pop("overrides", ())
    kept = f"; an interrupted run is kept in train.kept-2 ({why})" if why else ""
    first = "forced" if why == "forced" else "has not run"
    assert workshop.plan(*overrides, **options)[0] == f"train: will run ({first}{kept})"
    assert (workshop.runs / "train.partial" / "half").exists(), "a dry run moves nothing"
    said = workshop.said(*overrides, **options)
    assert not (workshop.runs / "train" / "half").exists()
    moved = f"train: the interrupted run is kept in {workshop.runs / 'train.kept-2'}"
    assert (moved in said) == (workshop.runs / "train.kept-2" / "half").exists() == bool(why)
    workshop.run(*overrides, fresh=True, force=True)
    assert (workshop.runs / "train.kept-2" / "half").exists() == bool(why), "and nothing touches it any more"


def test_a_folder_in_which_nothing_was_done_is_not_kept(workshop) -> None:
    with pytest.raises(ZeroDivisionError):
        workshop.run(executors={"train": lambda job: 1 / 0})
    assert workshop.plan("seed=9")[0] == "train: will run (has not run)"
    workshop.run("seed=9")
    assert not list(workshop.runs.glob("*.kept-*"))


def test_a_finished_stage_that_has_a_checkpoint_is_kept_when_another_one_takes_its_place(workshop) -> None:
    workshop.run()
    (workshop.runs / "train" / "checkpoints").mkdir()
    (workshop.runs / "train" / "checkpoints" / "step-00000020.ckpt").write_text("state")
    (workshop.runs / "evaluate" / "own.txt").write_text("")
    assert workshop.plan("seed=9")[0] == (
        "train: will run (seed changed: 3 -> 9; the finished one with its checkpoints is kept in train.kept-1)"
    )
    workshop.run("seed=9")
    assert (workshop.runs / "train.kept-1" / "checkpoints" / "step-00000020.ckpt").read_text() == "state"
    assert read_record(workshop.runs / "train.kept-1").identity["seed"] == 3  # type: ignore[union-attr]
    assert not (workshop.runs / "evaluate" / "own.txt").exists(), "without one, results are replaced as before"
    (workshop.runs / "train" / "step.ckpt").write_text("state")
    workshop.run("seed=9", force=True)
    assert not (workshop.runs / "train.kept-2").exists(), "the same stage again was asked for"
    (workshop.runs / "train" / "step.ckpt").write_text("state")
    (workshop.runs / "train" / "adapter.safetensors").unlink()
    workshop.run("seed=9")
    assert (workshop.runs / "train.kept-2" / "step.ckpt").exists()


def test_a_stage_that_went_on_with_other_inert_settings_records_them(workshop) -> None:
    workshop.failing["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        workshop.run("stages.train.preview.every=5")
    changes = ("stages.train.device=cuda:1", "stages.train.checkpoint.every=3", "stages.train.micro_batch_size=0")
    shown = ['device "auto" -> "cuda:1"', "micro_batch_size 1 -> 0"]
    planned = workshop.plan(*changes)[0]
    assert planned.startswith("train: will continue (was interrupted; goes on with ")
    assert all(f"goes on with {change}" in planned for change in shown)
    with pytest.raises(KeyboardInterrupt):
        workshop.run(*changes)
    workshop.failing.clear()
    workshop.run("stages.train.micro_batch_size=0", only="train")
    assert (workshop.runs / "train" / "half").exists(), "it went on in its folder"
    record = read_record(workshop.runs / "train")
    assert record is not None and sorted(record.changes) == sorted([*shown, 'device "cuda:1" -> "auto"'])
    assert workshop.plan("stages.train.compile=true")[0] == "train: reused"


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


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"fingerprint": "x", "identity": 3}', '{"more": 1}'])
def test_a_folder_that_does_not_say_what_began_in_it_is_kept_aside(workshop, text: str) -> None:
    workshop.failing["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        workshop.run()
    (workshop.runs / "train.partial" / "begun.json").write_text(text)
    assert workshop.plan()[0] == (
        "train: will run (has not run; an interrupted run is kept in train.kept-1 "
        "(there is no record of what it is a run of))"
    )


@pytest.mark.parametrize("identity", ["[1]", "3", '{"kind": "train", "settings": [1]}', '{"kind": "train"}'])
def test_a_record_that_makes_no_sense_is_not_used(workshop, identity: str) -> None:
    workshop.run()
    file = workshop.runs / "train" / "stage.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "identity": json.loads(identity)}))
    assert workshop.plan()[0].startswith("train: will run (")
