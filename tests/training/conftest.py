"""Runs on the tiny model for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def toys(load_module: Callable[[Path], ModuleType]) -> Any:
    return load_module(Path(__file__).with_name("toy_runs.py"))


@pytest.fixture(scope="session")
def models(toys, tiny_model: Path) -> list[Any]:
    """The same model thrice: no test has more runs at once, and copying costs more than these."""
    return [toys.load(tiny_model) for _ in range(3)]


@pytest.fixture
def make_run(toys, models: list[Any]) -> Callable[..., Any]:
    left = iter(models)
    return lambda method, **changes: toys.begin(next(left), method, **changes)
