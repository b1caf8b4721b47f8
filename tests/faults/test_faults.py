"""A run that is killed, interrupted or refused room before any of its changes on the disk loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EVERY = 2
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
    max_steps: 5
    batch_size: 1
    checkpoint: {every: 2, keep_final: false}
    preview: {every: 0}
    device: cpu
  mix:
    kind: mix
    adapters:
      a: {from: "${out:train.adapter}", weight: 0.5}
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are twins of one process")


def broken_runs(folder: Path, model: Path, faults: str, *words: str) -> list[dict[str, Any]]:
    """Break a run at every point; one record for each."""
    (folder / "small.yaml").write_text(PIPELINE.replace("MODEL", str(model)), encoding="utf-8")
    script = Path(__file__).with_name("inject.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), faults, "run", "small.yaml", *words],
        cwd=folder,
        # One thread and no accelerator: a twin has only the thread that forked.
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(record: dict[str, Any]) -> None:
    """What holds after every fault."""
    where, errors = f"{record['fault']} at {record['point']}: {record['place']}", record["err"]
    expected = {"kill": -9, "interrupt": 130, "full": 2}[record["fault"]]
    # What is removed at the very end may stay until the next run: the results are there.
    ended = record["fault"] == "full" and record["place"].startswith(("remove", "rmdir")) and record["code"] == 0
    assert ended or record["code"] == expected, f"{where}\n{errors}"
    assert "Traceback" not in errors, f"{where}\n{errors}"
    if record["fault"] == "full" and not ended:
        assert errors.startswith("error: "), where
        assert "needs: " in errors or "--runs-dir: cannot write results there" in errors, f"{where}\n{errors}"
    if record["fault"] != "kill" and record["point"] > 3 and not ended:  # before, there is no run yet
        assert "resume: draft run small.yaml" in errors, f"{where}\n{errors}"
    assert record["again"] == 0, f"{where}\n{record['again_err']}"
    assert record["differs"] == [], f"{where}: the same command gives other files"
    assert record["lost"] <= EVERY, f"{where}: {record['made']} updates made, {record['lost']} lost"


def test_a_run_that_is_broken_here_and_there_loses_at_most_a_checkpoints_interval(
    tmp_path: Path, tiny_model: Path
) -> None:
    records = broken_runs(tmp_path, tiny_model, "kill,full,interrupt", "--every", "9")
    assert len(records) >= 7
    for record in records:
        check(record)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "interrupt", "full"])
def test_a_run_that_is_broken_anywhere_loses_at_most_a_checkpoints_interval(
    tmp_path: Path, tiny_model: Path, fault: str
) -> None:
    records = broken_runs(tmp_path, tiny_model, fault)
    for record in records:
        check(record)
    places = [record["place"].partition(" ")[0] for record in records]
    assert len(records) >= 60 and {"mkdir", "open", "write", "rename", "remove", "rmdir"} <= set(places)
    assert max(record["made"] for record in records) == 5


@pytest.mark.slow
def test_a_longer_training_that_is_broken_anywhere_keeps_the_finished_one_until_it_takes_its_place(
    tmp_path: Path, tiny_model: Path
) -> None:
    records = broken_runs(
        tmp_path,
        tiny_model,
        "full,kill,interrupt",
        "stages.train.checkpoint.keep_final=true",
        *("--first", "stages.train.max_steps=3"),
    )
    for record in records:
        check(record)
        assert record["made"] - record["lost"] >= 3, record["place"]
    assert any(record["place"] == "rename small/train" for record in records)
