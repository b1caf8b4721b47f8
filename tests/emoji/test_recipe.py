"""The recipe's loop: stopped and started again, it ends where an uninterrupted run ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from draft_emoji.recipe.__main__ import COMMANDS, TAKES, read
from draft_emoji.recipe.checkpoint import save_tensors
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training

SCHEDULE = Training(steps=6, batch=1, rate=0.1, warm=2)


def train(out: Path, steps: int) -> torch.Tensor:
    torch.manual_seed(0)
    net = nn.Linear(3, 1)

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        return {"error": (net(torch.randn(4, 3)) - step).square().mean()}

    # The rate depends on the schedule's length, so a stop is a bound on steps and not another schedule.
    fit("part", Sitting(out, minutes=None if steps == SCHEDULE.steps else 0.0), SCHEDULE, {"net": net}, loss_of)
    return net.weight.detach().clone()


def test_a_run_in_sittings_ends_with_the_weights_of_one_without_a_break(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", SCHEDULE.steps)
    for _ in range(SCHEDULE.steps - 1):
        assert not torch.equal(train(tmp_path / "parts", 1), whole)
    assert torch.equal(train(tmp_path / "parts", SCHEDULE.steps), whole)


def test_weights_without_an_optimizer_are_a_start(tmp_path: Path) -> None:
    start = {"weight": torch.full((1, 3), 7.0), "bias": torch.zeros(1)}
    save_tensors(tmp_path / "part" / "net.safetensors", start)
    assert (train(tmp_path, 1) - 7).abs().max() < 0.2


def test_an_option_that_a_command_would_not_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(TAKES) == set(COMMANDS)
    assert read(["unet", "--steps", "3"]).steps == 3
    with pytest.raises(SystemExit):
        read(["judge", "--guidance", "2"])
    assert "judge does not read --guidance (got [2.0])" in capsys.readouterr().err
