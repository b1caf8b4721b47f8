"""The command in this process, and a package of rewards whose scores are known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from draft_cli.app import main

TASTES = '''
import draft


class Bright(draft.Reward):
    """The mean of an image."""
    name = "bright"
    gain: float = draft.Field(1.0, gt=0, description="a factor")

    def load(self, device):
        return lambda images, prompts: self.gain * images.mean(dim=(1, 2, 3))


class Crowd(draft.Reward):
    """How many images were scored together."""
    name = "crowd"
    differentiable = False

    def load(self, device):
        return lambda images, prompts: images.new_full((len(images),), len(images))


class Unlike(draft.Reward):
    """How far an image's mean is from that of all images."""
    name = "unlike"
    per_image = False

    def load(self, device):
        def score(images, prompts):
            means = images.mean(dim=(1, 2, 3))
            return (means - means.mean()).abs()

        return score


class Wordy(draft.Reward):
    """The length of a text."""
    name = "wordy"
    differentiable = False
    text: str = draft.Field("{prompt}", description="the text, or a column")

    def load(self, device):
        return lambda images, prompts: images.new_tensor([len(text) for text in draft.per_prompt(self.text, prompts)])


class Heavy(draft.Reward):
    """A reward with weights."""
    name = "heavy"
    model: str = draft.Field("owner/large", description="the weights")

    def load(self, device):
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


@draft.hookimpl
def draft_rewards():
    return [Bright, Crowd, Unlike, Wordy, Heavy]
'''

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call `draft` with words; returns exit code, output and errors."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["draft", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def tastes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewards `bright`, `crowd`, `unlike`, `wordy` and `heavy`, installed."""
    site = tmp_path / "site"
    info = site / "draft_tastes-1.0.0.dist-info"
    info.mkdir(parents=True)
    (site / "draft_tastes.py").write_text(TASTES, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: draft-tastes\nVersion: 1.0.0\n", encoding="utf-8")
    names = ("bright", "crowd", "unlike", "wordy", "heavy")
    points = "\n".join(f"{name} = draft_tastes" for name in names)
    (info / "entry_points.txt").write_text(f"[draft]\n{points}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "draft_tastes", raising=False)
