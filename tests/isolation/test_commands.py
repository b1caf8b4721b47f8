"""`draft rewards show | check | score | try --python ENV`: a reward that only another environment has."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from draft_cli.app import main


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: Any) -> Any:
    """Call `draft rewards` with words in an empty folder that holds the environment as `env`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env").symlink_to(room.folder)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["draft", "rewards", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_its_card_has_the_types_bounds_and_yaml_of_its_own_environment(command: Any, tmp_path: Path) -> None:
    code, out, err = command("show", "glow")
    assert code == 2 and "unknown reward (got 'glow')" in err
    code, out, _ = command("show", "glow", "--python", "env")
    assert code == 0
    assert out.startswith(
        "glow   mine-rewards 4.2   differentiable\n\nHow much an image glows, as its prompt wants it."
    )
    (row,) = (line.split() for line in out.splitlines() if line.startswith("amount "))
    assert row[:6] == ["amount", "number", "1.0", "0", "to", "2"]
    python = json.dumps(str(tmp_path / "env/bin/python"))
    assert f"    glow:\n      isolated: {{python: {python}}}\n      weight: 1.0\n" in out


def test_it_keeps_its_contract(command: Any) -> None:
    code, out, err = command("check", "glow", "--python", "env/bin/python", "--set", "amount=1.5")
    assert code == 0, out + err
    assert out.splitlines()[-1] == "glow: keeps its contract"
    code, _, err = command("check", "glow", "--python", "env", "--set", "amount=3")
    assert code == 2 and "glow.amount: must be at most 2 (got 3)" in err


def test_it_scores_pictures_and_is_tried_with_its_gradient(command: Any, tmp_path: Path) -> None:
    for level in (40, 200):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{level}.png")
    code, out, err = command("score", "glow", "40.png", "200.png", "--python", "env", "--prompt", "a cat", "--json")
    assert code == 0, err
    dark, bright = (row["score"] for row in json.loads(out)["scores"])
    assert 0 < dark < bright
    words = ("--python", "env", "--set", "target=281", "--prompt", "a cat", "--steps", "2", "--on", "pixels")
    code, out, err = command("try", "glow", *words, "--json")
    assert code == 0, err
    assert json.loads(out)["reward"]["target"] == "281"
    assert (tmp_path / "glow_try.png").exists()


def test_one_that_reads_no_prompt_scores_pictures_without_one(command: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    code, out, err = command("score", "symmetry", "a.png", "--python", "env", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["scores"]
    assert row["prompt"] is None and row["score"] == 0
    code, _, err = command("score", "glow", "a.png", "--python", "env")
    assert code == 2 and "none is given" in err


def test_its_stand_in_is_that_of_its_own_environment(command: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    code, out, err = command("score", "glow", "a.png", "--python", "env", "--prompt", "a", "--stand-in", "--json")
    assert code == 0, err
    assert json.loads(out)["reward"]["model"] == "emoji/clip"


def test_an_environment_that_is_not_there_is_told(command: Any) -> None:
    code, out, err = command("check", "glow", "--python", "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("error: command line, --python: must be a Python that is there (got ")
