"""The lines of metrics.jsonl come back from a checkpoint, or the run reports how many are lost."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from draft.errors import DraftWarning
from draft.rewards.reward import Reward, Term
from draft.training.branch import Branch, find_checkpoint
from draft.training.checkpoint import read_checkpoint, save_checkpoint
from draft.training.settings import TrainSettings

Run = Callable[..., list[str]]


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


DAMAGE = {
    "cut": lambda text: text[: len(text) // 3],
    "a line of nonsense": lambda text: text.replace('"step": 2', '"st\0p": ', 1),
    "a line without figures": lambda text: "{}\n" + text.partition("\n")[2],
    "a figure with a flipped bit": lambda text: text.replace('"reward": 0.', '"reward": 2.', 1),
    "no object": lambda text: text.replace("{", "5 {", 1),
    "empty": lambda text: "",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_metrics_are_restored_from_the_checkpoint(
    run: Run, tmp_path: Path, how: str, settings: TrainSettings
) -> None:
    run(settings, "a", stop=5)
    metrics = tmp_path / "a" / "metrics.jsonl"
    before = lines(tmp_path / "a")
    assert len(before) == 6
    damaged = DAMAGE[how](metrics.read_text())
    assert damaged != metrics.read_text()
    metrics.write_text(damaged)
    heard = run(settings, "a")
    assert "metrics.jsonl was damaged; its lines up to update 4 are restored from the checkpoint" in heard
    assert lines(tmp_path / "a")[:4] == before[:4]
    assert [json.loads(line)["step"] for line in lines(tmp_path / "a")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_training_writes_damaged_metrics_again_without_an_update(
    run: Run, tmp_path: Path, settings: TrainSettings
) -> None:
    heard = run(settings, "a")
    assert not any("damaged" in text for text in heard)
    before = lines(tmp_path / "a")
    (tmp_path / "a" / "metrics.jsonl").unlink()
    assert "going on after update 6" in run(settings, "a")
    assert lines(tmp_path / "a") == before


def without_metrics(folder: Path) -> None:
    """Make the checkpoints of a training those of an earlier version."""
    for path in (folder / "checkpoints").glob("*.ckpt"):
        state = dict(read_checkpoint(path) or {})
        del state["metrics"]
        save_checkpoint(folder / "checkpoints", state.pop("step"), state, keep=9)


@pytest.mark.parametrize("how", DAMAGE)
def test_lines_that_no_checkpoint_holds_are_counted_when_they_are_lost(
    run: Run, tmp_path: Path, how: str, settings: TrainSettings
) -> None:
    run(settings, "a", stop=5)
    without_metrics(tmp_path / "a")
    metrics = tmp_path / "a" / "metrics.jsonl"
    metrics.write_text(DAMAGE[how](metrics.read_text()))
    left = {"cut": 2, "empty": 0, "a figure with a flipped bit": 4}.get(how, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(settings, "a")
    told = [str(each.message) for each in caught if issubclass(each.category, DraftWarning)]
    lost = f"{metrics} has intact lines of {left} of the 4 updates made before; the others are lost"
    assert any(text.startswith(lost) for text in told) == (left < 4)
    steps = [json.loads(line)["step"] for line in lines(tmp_path / "a")]
    assert len(steps) == left + 2 and steps[-2:] == [5, 6] and steps == sorted(set(steps))


def test_a_branch_has_the_lines_of_its_checkpoint_whatever_became_of_the_file(
    run: Run, tmp_path: Path, settings: TrainSettings, brightness: type[Reward]
) -> None:
    run(settings, "a", stop=5)
    before = lines(tmp_path / "a")
    (tmp_path / "a" / "metrics.jsonl").write_text("damaged")
    branch = Branch.at(find_checkpoint([tmp_path / "a"], 2))
    other = [Term("glow", brightness(), 2.0)]
    heard = run(replace(settings, learning_rate=0.02), "b", branch=branch, terms=other)
    assert not any("damaged" in text for text in heard)
    assert lines(tmp_path / "b")[:2] == before[:2] and len(lines(tmp_path / "b")) == 6
