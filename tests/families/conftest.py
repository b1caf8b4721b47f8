"""A family from outside, as pip leaves it, and the command in this process."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draft_cli.app import main

EXAMPLE = Path(__file__).parents[2] / "plugins" / "example_family"
MODULES = ("draft_pocket_flow", "draft_pocket_flow.networks", "draft_pocket_flow.model", "draft_pocket_flow.weights")


@pytest.fixture(scope="module", autouse=True)
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The example package, installed into a folder on this process's path: its module, with `weights` and `model`."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE / "draft_pocket_flow", folder / "draft_pocket_flow")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("draft_pocket_flow")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pocket(stranger: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder."""
    return importlib.import_module("draft_pocket_flow.weights").write(tmp_path_factory.mktemp("pocket") / "model")


@pytest.fixture(scope="session")
def command() -> Callable[..., tuple[int, str]]:
    """Calls `draft` with words; returns the exit code and all that it printed."""

    def draft(*words: str) -> tuple[int, str]:
        printed, before = io.StringIO(), sys.argv
        sys.argv = ["draft", *words]
        try:
            with (
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
                pytest.raises(SystemExit) as stop,
            ):
                main()
        finally:
            sys.argv = before
        return int(stop.value.code or 0), printed.getvalue()

    return draft


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a pipeline of stages into the present folder, an empty one; returns its file's name."""
    monkeypatch.chdir(tmp_path)

    def write(stages: Mapping[str, Any], name: str = "pocket", **more: Any) -> str:
        Path(f"{name}.yaml").write_text(json.dumps({"name": name, "stages": dict(stages), **more}), encoding="utf-8")
        return f"{name}.yaml"

    return write
