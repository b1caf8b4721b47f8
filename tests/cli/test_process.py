"""The command as a process: closed and full streams, Ctrl-C while it starts, and several in a row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PIPELINE = """\
name: small
stages:
  train:
    kind: train
    model: MODEL
    prompts: [a cat, a dog]
    rewards: {jpeg: {quality: 50}}
    method: {kind: draft_lv, copies: 1}
    sampler: {num_inference_steps: 2, guidance_scale: 1}
    lora: {rank: 2}
    max_steps: 100000
    batch_size: 1
    checkpoint: {every: 1}
    preview: {every: 0}
    device: cpu
"""
COMMAND = "from draft_cli.start import main; main()"
"""What the installed script `draft` does."""


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line in which `draft` is the command."""
    script = folder / "draft"
    script.write_text(f"#!{sys.executable}\n{COMMAND}\n")
    script.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def pipeline(tmp_path: Path, tiny_model: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(PIPELINE.replace("MODEL", str(tiny_model)), encoding="utf-8")
    return file


needs_shell = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")


@needs_shell
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_on_purpose_is_no_error(pipeline: Path, closed: str) -> None:
    done = shell(f"draft check small.yaml {closed}", pipeline.parent)
    assert done.returncode == 0 and done.stderr == ""
    assert ("ok: 1 stage" in done.stdout) == (closed == "2>&-")


@needs_shell
def test_no_file_gets_the_output_that_was_meant_for_a_closed_stream(pipeline: Path) -> None:
    done = shell("draft run small.yaml stages.train.max_steps=1 >&-", pipeline.parent)
    assert done.returncode == 0, done.stderr
    config = (pipeline.parent / "runs" / "small" / "config.yaml").read_text()
    assert config.startswith("name: small") and "train: done" not in config


@needs_shell
@needs_full
@pytest.mark.parametrize(
    "command", ["check small.yaml", "run small.yaml --dry-run", "--help", "rewards list", "rewards list --json"]
)
def test_output_that_cannot_be_written_is_one_error(pipeline: Path, command: str) -> None:
    done = shell(f"draft {command} >/dev/full", pipeline.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output cannot be written to: ") and len(done.stderr) < 300
    assert "o space left on device" in done.stderr


@needs_shell
@needs_full
def test_a_run_whose_output_cannot_be_written_says_how_to_go_on(pipeline: Path) -> None:
    done = shell("draft run small.yaml >/dev/full", pipeline.parent)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "  resume: draft run small.yaml"


@needs_shell
@needs_full
def test_errors_that_cannot_be_written_leave_the_exit_code(pipeline: Path) -> None:
    assert shell("draft check nothing.yaml 2>/dev/full", pipeline.parent).returncode == 2
    assert shell("draft check small.yaml >/dev/full 2>/dev/full", pipeline.parent).returncode == 2


@needs_shell
@pytest.mark.parametrize("module", ["draft_cli.streams", "draft_cli.app", "typer", "pydantic", "yaml", "omegaconf"])
def test_an_interrupt_while_it_starts_ends_it_with_one_word(pipeline: Path, module: str) -> None:
    code = (
        "import importlib.abc, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Stop(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"sys.argv = ['draft', 'check', {str(pipeline)!r}]\n{COMMAND}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@needs_shell
def test_an_interrupt_that_a_library_turns_into_an_error_of_its_own_is_one(pipeline: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import draft.pipeline.load\n"
        "def load(*args, **options):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        sum(range(10**6))\n"
        "    except KeyboardInterrupt:\n"
        "        raise ImportError('numpy failed to import')\n"
        "draft.pipeline.load.load_pipeline = load\n"
        f"sys.argv = ['draft', 'check', {str(pipeline)!r}]\n{COMMAND}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@needs_shell
def test_five_interrupts_in_a_row_are_one(pipeline: Path) -> None:
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.argv = ['draft', 'run', {str(pipeline)!r}]\n{COMMAND}\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=pipeline.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = pipeline.parent / "runs" / "small" / "train.partial" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(5):
        child.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, errors = child.communicate(timeout=100)
    assert child.returncode == 130
    assert errors == f"interrupted\n  resume: draft run {pipeline}\n"
