"""How large the UNet of a model is, from its configuration alone: no weights are read."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from draft.diffusion.families import families


def count_parameters(model: str) -> int | None:
    """Count the parameters of a model's denoiser.

    Args:
        model: A folder in diffusers' format, a `.safetensors` checkpoint, or a hub id, of which only the
            configuration is downloaded.

    Returns:
        Their number; None where it cannot be known, or the family has no UNet.
    """
    try:
        return _in_checkpoint(Path(model)) if Path(model).is_file() else _in_configuration(model)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        return None


def _in_configuration(model: str) -> int | None:
    pipeline: Any = DiffusionPipeline.load_config(model)
    if not any(row.pipeline == pipeline.get("_class_name") and row.part == "unet" for row in families().values()):
        return None
    config: Any = UNet2DConditionModel.load_config(model, subfolder="unet")
    with torch.device("meta"):  # shapes without memory
        unet: Any = UNet2DConditionModel.from_config(config)
    return sum(parameter.numel() for parameter in unet.parameters())


def _in_checkpoint(path: Path) -> int | None:
    with safe_open(str(path), "pt") as file:
        names = [name for name in file.keys() if name.startswith("model.diffusion_model.")]  # noqa: SIM118
        shapes = [file.get_slice(name).get_shape() for name in names]
    return sum(map(prod, shapes)) or None
