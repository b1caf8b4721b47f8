"""`draft rewards new` writes a package that installs, passes its own tests and linters, and is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(folder: Path, *words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_is_good_as_it_is_generated(command: Any, folder: Path) -> None:
    code, out, _ = command("rewards", "new", "warm_light")
    package = folder / "draft-reward-warm-light"
    assert code == 0
    files = [
        "draft_reward_warm_light.py",
        "tests/test_warm_light.py",
        "pyproject.toml",
        "README.md",
        ".github/workflows/test.yml",
        ".gitignore",
    ]
    assert [line.removeprefix("wrote draft-reward-warm-light/") for line in out.splitlines()[:-1]] == files
    assert out.splitlines()[-1].startswith("next: pip install -e draft-reward-warm-light, then draft rewards check")

    ruff = str(Path(sys.executable).parent / "ruff")
    for words in (["check", "--no-cache"], ["format", "--no-cache", "--check"]):
        done = subprocess.run([ruff, *words, "."], cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    site = folder / "site"
    offline = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(folder, "-m", "pip", "install", *offline, "--target", str(site), str(package))
    assert {file.name for file in site.iterdir() if file.suffix == ".py"} == {"draft_reward_warm_light.py"}
    run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", PYTHONPATH=str(site))
    shown = run(folder, "-m", "draft", "rewards", "show", "warm_light", PYTHONPATH=str(site))
    assert shown.startswith("warm_light   draft-reward-warm-light 0.1.0   differentiable")


def test_files_that_are_there_are_never_touched_and_others_do_not_matter(command: Any, folder: Path) -> None:
    package = folder / "mine"
    package.mkdir()
    (package / "LICENSE").write_text("mine")
    assert command("rewards", "new", "warm_light", "-o", "mine")[0] == 0
    (package / "README.md").write_text("mine")
    code, out, err = command("rewards", "new", "warm_light", "-o", "mine")
    assert (code, out) == (2, "")
    assert "there is a file already, and nothing is overwritten" in err
    assert (package / "README.md").read_text() == (package / "LICENSE").read_text() == "mine"

    (folder / "other").mkdir()
    (folder / "other" / "README.md").write_text("mine")
    assert command("rewards", "new", "cool_light", "-o", "other")[0] == 2
    assert [file.name for file in (folder / "other").iterdir()] == ["README.md"], "all or nothing"


@pytest.mark.parametrize(
    ("name", "told", "hint"),
    [
        ("Warm-Light", "must be lower-case letters, digits and '_'", "such as 'warm_light'"),
        ("WarmLight", "(got 'WarmLight')", "such as 'warm_light'"),
        ("9lives", "a letter first", "such as 'warm_light'"),
        ("../up", "(got '../up')", "such as 'up'"),
        ("a" * 41, "at most 40 characters", f"such as '{'a' * 40}'"),
        ("class", "must not be a word of Python or YAML", "such as 'class_reward'"),
        ("null", "must not be a word of Python or YAML", "such as 'null_reward'"),
        ("jpeg", "there is a reward 'jpeg' already, from draft-diffusion", "`draft rewards list` shows"),
    ],
)
def test_a_name_that_cannot_be_used_is_told(command: Any, folder: Path, name: str, told: str, hint: str) -> None:
    code, out, err = command("rewards", "new", name)
    assert (code, out) == (2, "")
    assert told in err and hint in err
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_told(command: Any, folder: Path) -> None:
    (folder / "file").write_text("x")
    code, _, err = command("rewards", "new", "warm_light", "-o", "file/below")
    assert code == 2
    assert "error: command line: cannot write the package: " in err
