"""`draft rewards new` writes a package that installs, passes its own tests and linters, and is found."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import draft


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


def test_the_package_is_good_as_it_is_generated(command: Any, folder: Path, pip: list[str]) -> None:
    code, out, _ = command("rewards", "new", "warm_light")
    package = folder / "draft-reward-warm-light"
    assert code == 0
    files = [
        "draft_reward_warm_light/__init__.py",
        "tests/test_warm_light.py",
        "tests/test_wheel.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        ".github/workflows/test.yml",
        ".github/workflows/publish.yml",
        ".gitignore",
        "draft_reward_warm_light/py.typed",
    ]
    assert [line.removeprefix("wrote draft-reward-warm-light/") for line in out.splitlines()[:-1]] == files
    assert out.splitlines()[-1].startswith("next: pip install -e draft-reward-warm-light, then draft rewards check")

    ruff = str(Path(sys.executable).parent / "ruff")
    for words in (["check", "--no-cache"], ["format", "--no-cache", "--check"]):
        done = subprocess.run([ruff, *words, "."], cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    site = folder / "site"
    offline = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(folder, *pip[1:], "install", *offline, "--target", str(site), str(package))
    paths = os.pathsep.join(path for path in (str(site), os.environ.get("PYTHONPATH", "")) if path)
    run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", PYTHONPATH=paths)
    shown = run(folder, "-m", "draft", "rewards", "show", "warm_light", PYTHONPATH=paths)
    assert shown.startswith("warm_light   draft-reward-warm-light 0.1.0   differentiable")


def test_the_wheel_holds_weights_and_other_modules_and_its_own_test_finds_one_that_is_missing(
    command: Any, folder: Path
) -> None:
    assert command("rewards", "new", "warm_light", "-o", "package")[0] == 0
    package = folder / "package" / "draft_reward_warm_light"
    (package / "network.py").write_text("A = 1\n")
    (package / "weights").mkdir()
    (package / "weights" / "large.pt").write_bytes(b"weights")
    run(folder / "package", "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert "Copyright (c) YOUR NAME" in archive.read(licence).decode()
    names = ("__init__.py", "network.py", "py.typed", "weights/large.pt")
    assert packed == {f"draft_reward_warm_light/{name}" for name in names}

    with (folder / "package" / ".gitignore").open("a") as ignored:
        ignored.write("*.pt\n")
    own = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_wheel.py"]
    done = subprocess.run([sys.executable, *own], cwd=folder / "package", capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "weights/large.pt" in done.stdout


@pytest.mark.slow
def test_the_package_passes_the_type_checker_that_its_workflow_runs(command: Any, folder: Path) -> None:
    assert command("rewards", "new", "warm_light", "-o", "package")[0] == 0
    out = run(folder / "package", "-m", "pyright", "--pythonpath", sys.executable)
    assert "0 errors, 0 warnings" in out


def test_the_metadata_is_what_an_index_shows(command: Any, folder: Path) -> None:
    words = ("--author", 'Ada "Q" Ünk <ada@example.org>', "--url", "https://example.org/light")
    assert command("rewards", "new", "warm_light", "-o", "package", *words)[0] == 0
    project = tomllib.loads((folder / "package" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["authors"] == [{"name": 'Ada "Q" Ünk', "email": "ada@example.org"}]
    assert project["urls"] == {"Repository": "https://example.org/light"}
    assert (project["license"], project["license-files"]) == ("MIT", ["LICENSE"])
    assert 'Copyright (c) Ada "Q" Ünk\n' in (folder / "package" / "LICENSE").read_text(encoding="utf-8")
    assert not [entry for entry in project["classifiers"] if "License" in entry], "the licence is an expression"
    (needed,) = (Requirement(line) for line in project["dependencies"])
    bounds = {bound.operator for bound in needed.specifier}
    assert needed.name == "draft-diffusion" and bounds == {">=", "<"}
    assert needed.specifier.contains(draft.__version__, prereleases=True)
    source = (folder / "package" / "draft_reward_warm_light" / "__init__.py").read_text(encoding="utf-8")
    assert f"    api_version = {draft.Reward.api_version}  #" in source, "a number, so that it stays when Draft's rises"


def test_the_workflows_test_every_change_and_publish_a_release_without_a_password(command: Any, folder: Path) -> None:
    assert command("rewards", "new", "warm_light", "-o", "package")[0] == 0
    workflows = folder / "package" / ".github" / "workflows"
    test, publish = (yaml.safe_load((workflows / name).read_text()) for name in ("test.yml", "publish.yml"))
    # YAML 1.1 reads the key `on` as true.
    assert test[True] == ["push", "pull_request"] and publish[True] == {"release": {"types": ["published"]}}
    steps = [step.get("run", "") for step in test["jobs"]["test"]["steps"]]
    assert steps[-4:] == ["ruff check .", "ruff format --check .", "pyright", "pytest"]
    for workflow in (test, publish):
        assert workflow["env"]["DRAFT"] == "${{ vars.DRAFT || 'draft-diffusion' }}"

    build, upload = publish["jobs"]["build"], publish["jobs"]["publish"]
    assert upload["permissions"] == {"id-token": "write"} and upload["needs"] == "build"
    assert upload["steps"][-1] == {"uses": "pypa/gh-action-pypi-publish@release/v1"}
    assert "secrets." not in (workflows / "publish.yml").read_text()
    runs = [step.get("run", "") for step in build["steps"]]
    assert "python -m build" in runs
    (tested,) = (run for run in runs if "venv" in run)
    assert 'empty/bin/pip install "$DRAFT" dist/*.whl pytest' in tested
    assert tested.splitlines()[-1] == "empty/bin/pytest tests/test_warm_light.py"
    (guard,) = (run for run in runs if "grep" in run)
    bash = ["bash", "-e", "-c", guard]
    assert subprocess.run(bash, cwd=folder / "package", capture_output=True, check=False).returncode == 1
    words = ("--author", "Ada", "--url", "https://example.org/light")
    assert command("rewards", "new", "cool_light", "-o", "named", *words)[0] == 0
    assert subprocess.run(bash, cwd=folder / "named", capture_output=True, check=False).returncode == 0


def test_files_that_are_there_are_never_touched_and_others_do_not_matter(command: Any, folder: Path) -> None:
    package = folder / "mine"
    package.mkdir()
    (package / "LICENSE").write_text("mine")
    code, kept, _ = command("rewards", "new", "warm_light", "-o", "mine")
    assert code == 0
    (package / "README.md").write_text("mine")
    code, out, err = command("rewards", "new", "warm_light", "-o", "mine")
    assert (code, out) == (2, "")
    assert "there is a file already, and nothing is overwritten" in err
    assert (package / "README.md").read_text() == (package / "LICENSE").read_text() == "mine"
    assert "name MIT; write there which licence it is" in kept

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


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--author", "Ada <nobody>"], "--author: must be a name, or 'Name <mail@example.org>' (got 'Ada <nobody>')"),
        (["--author", "A\nB"], "--author: must be a name"),
        (["--url", "example.org"], "--url: must be an address such as https://... (got 'example.org')"),
    ],
)
def test_an_author_or_an_address_that_is_none_is_told(command: Any, folder: Path, words: list[str], what: str) -> None:
    code, _, err = command("rewards", "new", "warm_light", *words)
    assert code == 2 and what in err
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_told(command: Any, folder: Path) -> None:
    (folder / "file").write_text("x")
    code, _, err = command("rewards", "new", "warm_light", "-o", "file/below")
    assert code == 2
    assert "error: command line: cannot write the package: " in err
