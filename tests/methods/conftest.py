"""Toy networks, tiny models in double precision, and runs on one, for the tests of methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from draft.diffusion.families import TextToImage, load_text_to_image

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def toys(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(HERE.parent / "diffusion" / "toys.py")


@pytest.fixture(scope="session")
def tiny_folders(tiny_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: tiny_module.save_tiny_model(root / name, prediction=name) for name in ("epsilon", "v_prediction")}


@pytest.fixture
def load(tiny_folders: dict[str, Path]) -> Callable[..., TextToImage]:
    def load(prediction: str = "epsilon", dtype: torch.dtype = torch.float64) -> TextToImage:
        return load_text_to_image(str(tiny_folders[prediction]), device=torch.device("cpu"), dtype=dtype)

    return load


@pytest.fixture(scope="session")
def toy_runs(load_module: Callable[[Path], ModuleType]) -> Any:
    return load_module(HERE / "toy_runs.py")


@pytest.fixture(scope="session")
def models(toy_runs: Any, tiny_model: Path) -> list[Any]:
    """The same model thrice: no test has more runs at once, and copying costs more than these."""
    return [toy_runs.load(tiny_model) for _ in range(3)]


@pytest.fixture
def make_run(toy_runs: Any, models: list[Any]) -> Callable[..., Any]:
    left = iter(models)
    return lambda method, **changes: toy_runs.begin(next(left), method, **changes)
