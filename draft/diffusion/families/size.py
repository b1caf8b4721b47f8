"""How large a model's networks are, from headers and configurations alone: no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open

from draft.diffusion.families.pretrained import undisturbed
from draft.errors import DraftError
from draft.family import Family

# What names begin with in checkpoints of the original layouts, by what Draft calls it.
_PREFIXES = {
    "denoiser": ("model.diffusion_model.",),
    "encoders": ("cond_stage_model.", "conditioner.", "text_encoders."),
}


def count_in_checkpoint(path: Path, family: Family) -> dict[str, int]:
    """Count the parameters in a single-file checkpoint from its header.

    Args:
        path: The `.safetensors` file.
        family: Its family.

    Returns:
        Those of the denoiser and of all text encoders together, by component.
    """
    with safe_open(str(path), "np") as file:
        sizes = {name: prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    counts = {
        kind: sum(size for name, size in sizes.items() if name.startswith(prefixes))
        for kind, prefixes in _PREFIXES.items()
    }
    return {family.part: counts["denoiser"], family.encoders[0]: counts["encoders"]}


def count_in_pipeline(model: str, family: Family) -> dict[str, int]:
    """Count the parameters of a folder's or a hub id's denoiser and text encoders.

    Args:
        model: Folder or hub id; of a hub id only configurations are downloaded.
        family: Its family.

    Returns:
        Component to parameters: from the headers of the weights, or where there are none from the configuration. A
        component of which neither can be read is left out.
    """
    counts = {}
    for component in (family.part, *family.encoders):
        try:
            counts[component] = _in_headers(Path(model) / component) or _in_configuration(model, component, family)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError, DraftError):
            continue
    return counts


def _in_headers(folder: Path) -> int:
    files = [file for file in folder.glob("*.safetensors") if ".fp16." not in file.name]
    total = 0
    for path in files or folder.glob("*.safetensors"):
        with safe_open(str(path), "np") as file:
            total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _in_configuration(model: str, component: str, family: Family) -> int:
    name = family.components[component]
    with undisturbed(), torch.device("meta"):  # shapes without memory
        if component in family.encoders:
            config = transformers.AutoConfig.from_pretrained(model, subfolder=component)
            network: Any = getattr(transformers, name)(config)
        else:
            kind: Any = getattr(diffusers, name)
            network = kind.from_config(_loaded(kind, model, component))
    return sum(parameter.numel() for parameter in network.parameters())


def _loaded(kind: Any, model: str, component: str) -> Mapping[str, Any]:
    return kind.load_config(model, subfolder=component)
