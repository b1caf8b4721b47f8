"""A tiny model of one block, and an adapter for it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny_model(tiny_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet = {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    return tiny_module.save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", unet=unet)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_module: ModuleType, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_module.save_tiny_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "tiny.safetensors")
