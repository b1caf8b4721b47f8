"""Trainings on an accelerator: bf16, recomputed activations, a reward elsewhere, an interruption, and the waits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from draft.testing import pretended_accelerator
from draft.testing.pretended import Counts

STOPPING = '''
from pathlib import Path

import draft


class Stopping(draft.Reward):
    """The mean of an image; the third batch is interrupted while there is a file `flag`."""
    name = "stopping"

    def load(self, device):
        seen = []

        def score(images, prompts):
            seen.append(len(images))
            if len(seen) == 3 and Path(__file__).parents[1].joinpath("flag").exists():
                raise KeyboardInterrupt
            return images.mean(dim=(1, 2, 3))

        return score


@draft.hookimpl
def draft_rewards():
    return [Stopping]
'''


@pytest.fixture
def flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reward `stopping` is installed and stops where this file is."""
    info = tmp_path / "site" / "draft_stopping-1.0.0.dist-info"
    info.mkdir(parents=True)
    (info.parent / "draft_stopping.py").write_text(STOPPING, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: draft-stopping\nVersion: 1.0.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[draft]\nstopping = draft_stopping\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.delitem(sys.modules, "draft_stopping", raising=False)
    return tmp_path / "flag"


@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": "bf16"},
        {"gradient_checkpointing": True, "method": {"kind": "draft_k", "k": 2}},
        {"rewards": {"symmetry": {"device": "cpu"}}},
        {"rewards": {"symmetry": None}, "max_steps": 2, "robust": {"image_radius": 0.1, "weight_radius": 0.1}},
        {"penalty": {"epsilon": 0.1, "lora_norm": 0.1}, "gradient_accumulation_steps": 2, "saturation": "clip"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_training_goes_as_on_the_cpu(bench: Any, metrics: Any, settings: dict[str, Any]) -> None:
    # Fresh noise besides, which is the sampler's own branch.
    folders = bench.run_on_both({"train": bench.stage("train", sampler={"eta": 0.5}, **settings)})
    for expected, row in zip(*(metrics(folder / "train") for folder in folders), strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_training_on_the_cpu_may_follow_one_on_an_accelerator(bench: Any, accelerator: Counts) -> None:
    stages = {"there": bench.stage("train"), "here": bench.stage("train", device="cpu")}
    folder = bench.run("cuda:0", stages)
    assert (folder / "here" / "adapter.safetensors").exists()
    assert accelerator.operators.total() > 1000


def test_an_interrupted_training_resumes_on_the_accelerator_to_the_same_bytes(
    bench: Any, command: Any, flag: Path, tmp_path: Path
) -> None:
    settings = {
        "max_steps": 4,
        "checkpoint": {"every": 1},
        "method": {"kind": "draft_k", "k": 1},
        "micro_batch_size": 0,
    }
    stages = {"train": bench.stage("train", rewards={"stopping": None}, **settings)}
    file = str(bench.write("cuda:0", stages))
    with pretended_accelerator():
        assert command("run", file, "--runs-dir", str(tmp_path / "whole"))[0] == 0
        flag.touch()
        code, printed = command("run", file, "--runs-dir", str(tmp_path / "parts"))
        print(printed)
        assert code == 130
        flag.unlink()
        code, printed = command("run", file, "--runs-dir", str(tmp_path / "parts"))
    assert code == 0, printed
    assert "going on after update 2" in printed
    whole, parts = (tmp_path / name / "on-cuda-0" / "train" / "adapter.safetensors" for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()


def test_an_accelerator_is_what_auto_means(bench: Any, accelerator: Counts) -> None:
    folder = bench.run("auto", {"train": bench.stage("train")})
    assert accelerator.operators.total() > 1000
    assert load_file(folder / "train" / "adapter.safetensors")


def test_a_second_accelerator_is_not_there(bench: Any, command: Any) -> None:
    with pretended_accelerator():
        code, printed = command("run", str(bench.write("cuda:1", {"train": bench.stage("train")})))
    assert code == 2
    assert "device 'cuda:1' is not available here: invalid device ordinal" in printed


def test_an_update_waits_for_the_accelerator_three_times(bench: Any, tmp_path: Path) -> None:
    """Once for the gradient's norm and twice for the figures; the reward does not wait."""
    counted = []
    for updates in (2, 3):
        file = bench.write("cuda:0", {"train": bench.stage("train", max_steps=updates)})
        with pretended_accelerator() as counts:
            bench.draft("run", str(file), "--runs-dir", str(tmp_path / str(updates)))
            counted.append(counts)
    third = counted[1] - counted[0]
    assert third.reads.total() == 3, third
    assert not third.doubles, third
