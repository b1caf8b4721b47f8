"""The example of a family, `plugins/example_family`, as pip leaves it in a folder on the path."""

from __future__ import annotations

import importlib
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[1] / "plugins" / "example_family"


@contextmanager
def installed(folder: Path) -> Iterator[ModuleType]:
    """Install the package into an empty folder, for as long as the block lasts; yields its module."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (package,) = (path.parent.name for path in EXAMPLE.glob("*/__init__.py"))
    shutil.copytree(EXAMPLE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _forget(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module(package)
    _forget(package)


@contextmanager
def model(folder: Path) -> Iterator[Path]:
    """Install the package, and write one of its models; yields the model's folder."""
    (folder / "site").mkdir(parents=True)
    with installed(folder / "site") as module:
        yield importlib.import_module(f"{module.__name__}.weights").write(folder / "model")


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
