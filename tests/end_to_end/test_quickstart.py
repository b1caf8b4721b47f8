"""The main job through the command line on the embedded model: run, run again, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = [
    "stages.compress.max_steps=4",
    "stages.compress.batch_size=2",
    "stages.compress.checkpoint.every=1",
    "stages.compress.preview.every=2",
    "stages.align.max_steps=2",
    "stages.align.batch_size=2",
    "stages.align.preview.every=0",
    "stages.evaluate.images_per_prompt=1",
    "stages.evaluate.shown=4",
    "stages.compress.method.k=2",
    "vars.steps=3",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "draft", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command("run", "quickstart", *SMALL, *arguments),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_quickstart_leaves_adapters_results_and_a_page(finished: Path) -> None:
    runs = finished / "runs" / "quickstart"
    for name in ("compress", "align", "mix"):
        assert (runs / name / "adapter.safetensors").stat().st_size > 10_000
    lines = [json.loads(line) for line in (runs / "compress" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert (runs / "evaluate" / "report.html").read_text().startswith("<!doctype html>")
    results = json.loads((runs / "evaluate" / "report.json").read_text())
    assert {"base", "compress", "align", "mix"} <= set(results["arms"])
    assert not list(runs.glob("*.partial"))


def test_a_second_run_reuses_everything_and_imports_no_torch(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    script = (
        "import sys\n"
        "from draft_cli.app import main\n"
        f"sys.argv = ['draft', 'run', 'quickstart', *{SMALL!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    again = subprocess.run(
        [sys.executable, "-c", script], cwd=finished, capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("reused") >= 4, again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


def test_a_training_killed_in_the_middle_resumes_to_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    arguments = command("run", "quickstart", *SMALL, "--only", "compress")
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            arguments, cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        metrics = tmp_path / "runs" / "quickstart" / "compress.partial" / "metrics.jsonl"
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and child.poll() is None:
            if metrics.exists() and metrics.read_text().count("\n") >= 2:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        assert child.wait(timeout=60) == -signal.SIGKILL, (tmp_path / "log").read_text()
    stage = tmp_path / "runs" / "quickstart" / "compress"
    assert not stage.exists()
    resumed = run(tmp_path, "--only", "compress")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resum" in resumed.stdout + resumed.stderr
    whole = finished / "runs" / "quickstart" / "compress" / "adapter.safetensors"
    assert (stage / "adapter.safetensors").read_bytes() == whole.read_bytes()
