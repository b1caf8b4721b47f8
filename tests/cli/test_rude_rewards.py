"""A reward may print, exit, crash and raise: the command says whose fault it is, and results stay readable."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from draft_cli import app

RUDE = '''
import os
import sys

import draft

print("imported")


class Rude(draft.Reward):
    """Does what it is asked to."""
    name = "rude"
    differentiable = False
    does: str = draft.Field("", description="what to do")
    loading: str = draft.Field("", description="what to do while it is loaded")

    def load(self, device):
        act(self.loading)

        def score(images, prompts):
            act(self.does)
            return images.mean(dim=(1, 2, 3))

        return score


def act(what):
    if what == "print":
        print("hello from python", flush=True)
        os.write(1, b"hello from c\\n")
    if what == "exit":
        sys.exit(0)
    if what == "raise":
        raise ValueError("no cats\\nat all")
    if what == "crash":
        import ctypes
        ctypes.string_at(0)


@draft.hookimpl
def draft_rewards():
    return [Rude]
'''
PIPELINE = """
name: rude
seed: 0
stages:
  train:
    kind: train
    model: emoji
    prompts: [a cat]
    method: {kind: draft_lv, copies: 1}
    sampler: {num_inference_steps: 2, guidance_scale: 1.0}
    max_steps: 1
    batch_size: 1
    rewards: {mine: {use: rude, loading: LOADING}}
"""


@pytest.fixture
def rude(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reward `rude`, installed, and a picture in the current folder; returns where it is installed."""
    info = tmp_path / "rude" / "draft_rude-2.0.dist-info"
    info.mkdir(parents=True)
    (info.parent / "draft_rude.py").write_text(RUDE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: draft-rude\nVersion: 2.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[draft]\nrude = draft_rude\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.delitem(sys.modules, "draft_rude", raising=False)
    Image.new("RGB", (8, 8), "white").save(folder / "a.png")
    return info.parent


def line_of(text: str) -> int:
    return RUDE[: RUDE.index(text)].count("\n") + 1


SCORE = ("rewards", "score", "rude", "a.png", "--device", "cpu")


def run(rude: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    path = os.pathsep.join([str(rude), *filter(None, sys.path)])
    line = [sys.executable, "-m", "draft", *SCORE, *words]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_what_a_reward_prints_is_no_result_whoever_prints_it(rude: Path, folder: Path) -> None:
    done = run(rude, folder, "--json", "--set", "does=print", "--set", "loading=print")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scores"][0]["score"] == 1.0
    assert done.stderr.count("hello from python\n") == 2 and done.stderr.count("hello from c\n") == 2
    assert "imported\n" in done.stderr


@pytest.mark.parametrize("option", ["does", "loading"])
@pytest.mark.parametrize("what", ["raise", "exit"])
def test_an_exception_is_one_line_with_term_package_and_place(rude: Path, command: Any, option: str, what: str) -> None:
    code, out, err = command(*SCORE, "--set", f"{option}={what}")
    raised, line = {
        "raise": ("ValueError: no cats", line_of("raise ValueError")),
        "exit": ("SystemExit: 0", line_of("sys.exit(0)")),
    }[what]
    place = "rude: " if option == "does" else ""
    told = f"error: {place}reward 'rude' raised {raised} (draft-rude 2.0, draft_rude.py:{line})"
    assert (code, out) == (2, "")
    assert err.splitlines() == ["imported", told, "  hint: --traceback shows all of it"]


def test_all_of_an_exception_is_shown_on_request(rude: Path, command: Any) -> None:
    for words in ((*SCORE, "--set", "does=raise", "--traceback"), ("--traceback", *SCORE, "--set", "does=raise")):
        code, _, err = command(*words)
        assert code == 2
        assert "Traceback (most recent call last)" in err and re.search(r'draft_rude.py", line \d+, in act', err)
        assert err.splitlines()[-1].startswith("error: ") and "--traceback" not in err


@pytest.mark.parametrize("loading", ["raise", "exit"])
def test_a_run_that_a_reward_would_end_is_not_done(rude: Path, command: Any, folder: Path, loading: str) -> None:
    (folder / "rude.yaml").write_text(PIPELINE.replace("LOADING", loading), encoding="utf-8")
    (rude / "draft_rude.py").write_text(RUDE.replace("    differentiable = False\n", ""), encoding="utf-8")
    code, _, err = command("run", "rude.yaml")
    assert code == 2
    assert re.search(r"error: stage 'train': reward 'mine' raised \w+: .* \(draft-rude 2.0, draft_rude.py:\d+\)\n", err)
    assert "Traceback" not in err


def test_whatever_else_ends_the_command_is_an_error(command: Any, folder: Path, monkeypatch: Any) -> None:
    def ending() -> None:
        sys.exit(0)

    monkeypatch.setattr(app, "COMMANDS", {**app.COMMANDS, "models": (f"{__name__}:ending", "Ends.")})
    monkeypatch.setitem(sys.modules, __name__, type(sys)(__name__))
    sys.modules[__name__].ending = ending  # type: ignore[attr-defined]
    code, _, err = command("models")
    assert code == 2
    assert "error: the code of a plugin ended the command (SystemExit: 0)" in err


def test_a_crash_leaves_its_stack(rude: Path, folder: Path) -> None:
    done = run(rude, folder, "--set", "does=crash")
    assert done.returncode != 0
    assert "Segmentation fault" in done.stderr and re.search(r'draft_rude.py", line \d+ in act', done.stderr)
