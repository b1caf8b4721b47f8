"""A tiny model, and runs on it, for the tests of training."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = _module(Path(__file__).parent.parent / "diffusion" / "tiny.py")
    return tiny.save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def toys() -> Any:
    return _module(Path(__file__).parent / "toy_runs.py")


@pytest.fixture(scope="session")
def models(toys, tiny_model: Path) -> list[Any]:
    """The same model thrice: no test has more runs at once, and copying costs more than these."""
    return [toys.load(tiny_model) for _ in range(3)]


@pytest.fixture
def make_run(toys, models: list[Any]) -> Callable[..., Any]:
    left = iter(models)
    return lambda method, **changes: toys.begin(next(left), method, **changes)
