"""Tiny models for the tests of this folder, in double precision where gradients are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from draft.diffusion.families import TextToImage, load_text_to_image

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def toys(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(HERE / "toys.py")


@pytest.fixture(scope="session")
def layout(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(HERE / "original_layout.py")


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
def xl_module(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(HERE.parent / "tiny_xl.py")


@pytest.fixture(scope="session")
def xl_folder(xl_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xl_module.save_tiny_xl(tmp_path_factory.mktemp("xl") / "model")


@pytest.fixture(scope="session")
def xl_zero_snr(xl_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that predicts v down to no signal at all, and embeds an empty negative prompt."""
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return xl_module.save_tiny_xl(tmp_path_factory.mktemp("v") / "model", zeros=False, scheduler=scheduler)
