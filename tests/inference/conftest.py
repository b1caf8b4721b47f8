"""A tiny model with random weights, and an adapter that changes what it draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(__file__).parent.parent / "diffusion" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    unet = {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    return module.save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", unet=unet)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from diffusers import UNet2DConditionModel

    from draft.adapters.files.formats import Adapter, Factors, write_adapter

    unet = UNet2DConditionModel.from_pretrained(tiny_model, subfolder="unet")
    generator = torch.Generator().manual_seed(1)
    modules = {
        f"unet.{name}": Factors(
            torch.randn(4, module.in_features, generator=generator),
            torch.randn(module.out_features, 4, generator=generator),
        )
        for name, module in unet.named_modules()
        if name.endswith(("to_q", "to_v", "to_out.0"))
    }
    path = tmp_path_factory.mktemp("adapter") / "tiny.safetensors"
    write_adapter(Adapter(modules), path)
    return path
