"""Tiny models for the tests of this folder, in double precision where gradients are compared."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.diffusion.models import TextToImage, load_text_to_image


def _module(name: str = "tiny") -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_module() -> Any:
    return _module()


@pytest.fixture(scope="session")
def toys() -> Any:
    return _module("toys")


@pytest.fixture(scope="session")
def layout() -> Any:
    return _module("original_layout")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: _module().save_tiny_model(root / name, prediction=name) for name in ("epsilon", "v_prediction")}


@pytest.fixture
def load(tiny_folders: dict[str, Path]) -> Callable[..., TextToImage]:
    def load(prediction: str = "epsilon", dtype: torch.dtype = torch.float64) -> TextToImage:
        return load_text_to_image(str(tiny_folders[prediction]), device=torch.device("cpu"), dtype=dtype)

    return load
