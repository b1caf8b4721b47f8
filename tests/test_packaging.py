"""The wheel holds what a user needs and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("draft", "draft_cli", "draft_emoji", "draft_rewards")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a freshly built wheel."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_every_module_of_every_package_is_in_the_wheel(wheel: set[str]) -> None:
    folders = {"draft": "draft", "draft_cli": "cli/draft_cli"}
    for package in PACKAGES:
        folder = ROOT / folders.get(package, f"plugins/{package}")
        modules = {f"{package}/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*.py")}
        assert modules <= wheel


def test_types_licence_pipelines_and_templates_are_in_the_wheel(wheel: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= wheel
    assert {name.rsplit("/", 1)[-1] for name in wheel if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    shipped = {f"draft/pipelines/{file.name}" for file in (ROOT / "pipelines").glob("*.yaml")}
    assert shipped and shipped <= wheel
    templates = {
        f"draft/authoring/template/{file.name}" for file in (ROOT / "draft" / "authoring" / "template").iterdir()
    }
    assert templates and templates <= wheel
    maps = {file.relative_to(ROOT).as_posix() for file in (ROOT / "draft" / "adapters" / "data").rglob("*.json")}
    assert len(maps) == 6 and maps <= wheel


def test_nothing_else_is_in_the_wheel(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert not [name for name in wheel if "__pycache__" in name or "/tests/" in name or name.endswith((".pt", ".bin"))]


def test_the_constraints_name_every_direct_dependency() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = {line.split(">=")[0].lower() for line in config["dependencies"] + config["optional-dependencies"]["dev"]}
    lines = (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    assert direct == set(pinned)
    assert not [name for name in pinned if name == "torchvision" or "nvidia" in name or "cuda" in name]


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert len(text.splitlines()) > 195
