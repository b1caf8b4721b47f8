"""A family from outside, as pip leaves it, and the command in this process."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draft_cli.app import main


@pytest.fixture(scope="session", autouse=True)
def distributions() -> Iterator[None]:
    """Which module is of which distribution is read once: it would be half of what a small stage takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "packages_distributions", cache(importlib.metadata.packages_distributions))
        yield


@pytest.fixture(scope="module", autouse=True)
def stranger(
    load_module: Callable[[Path], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModuleType]:
    """The example package, installed: its module."""
    with load_module(Path(__file__).parents[1] / "stranger.py").installed(tmp_path_factory.mktemp("site")) as module:
        yield module


@pytest.fixture(scope="module")
def pocket(stranger: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder."""
    return importlib.import_module(f"{stranger.__name__}.weights").write(tmp_path_factory.mktemp("pocket") / "model")


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
