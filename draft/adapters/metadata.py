"""What an adapter file says about itself: only what follows from its contents, never a time, a host or a path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from draft.adapters.config import adapter_config

# Entries that describe one file's bytes or its making, which would be untrue of a new file.
_STALE = ("sshs_", "modelspec.hash", "modelspec.date", "ss_network", "ss_training_", "lora_adapter_metadata")


def file_metadata(own: Mapping[str, str], *, family: str, cross: int, rank: int) -> dict[str, str]:
    """The header of an adapter file: modelspec 1.0.1, the keys that kohya's tools read, and ours.

    Args:
        own: Entries to keep; they win over the ones made here, except those that would be untrue of the new file.
        family: `sd` or `sdxl`.
        cross: Width of the text the UNet attends to (768 for SD 1, 1024 for SD 2), 0 if unknown.
        rank: The largest rank.

    Returns:
        Strings by name.
    """
    kept = {name: value for name, value in own.items() if not name.startswith(_STALE)}
    architecture = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2"}.get(cross, "stable-diffusion")
    made = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{'stable-diffusion-xl-v1-base' if family == 'sdxl' else architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "draft adapter",
    }
    fixed = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "draft.version": draft_version(),
    }
    return {**made, **kept, **fixed}


def lora_metadata(ranks: Mapping[str, int], *, prefixed: bool) -> str:
    """diffusers' `lora_adapter_metadata`: peft's configuration of every part, as JSON.

    Without it some readers guess the alpha of a file with several ranks.

    Args:
        ranks: Rank by module path.
        prefixed: Whether keys carry the part (`unet.r`), as diffusers has it.

    Returns:
        JSON text with sorted keys.
    """
    flat: dict[str, Any] = {}
    for part in sorted({name.partition(".")[0] for name in ranks}):
        config = adapter_config({name: rank for name, rank in ranks.items() if name.partition(".")[0] == part})
        flat.update({f"{part}.{key}" if prefixed else key: value for key, value in config.items()})
    return json_text(flat)


def json_text(value: Any) -> str:
    """JSON that depends on the value alone: sorted keys, fixed spacing."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def draft_version() -> str:
    """The installed version of Draft, `unknown` from a bare source tree."""
    try:
        return version("draft-diffusion")
    except PackageNotFoundError:
        return "unknown"
