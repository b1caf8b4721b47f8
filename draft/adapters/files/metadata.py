"""What an adapter file says about itself: only what follows from its contents, never a time, a host or a path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from draft.adapters.files.config import adapter_config
from draft.diffusion.families import family_named

# Entries that describe one file's bytes or its making, which would be untrue of a new file.
_STALE = ("sshs_", "modelspec.hash", "modelspec.date", "ss_network", "ss_training_", "lora_adapter_metadata")


def file_metadata(
    metadata: Mapping[str, str], *, family: str, shapes: Mapping[str, tuple[int, int]], rank: int
) -> dict[str, str]:
    """The header of an adapter file: modelspec 1.0.1, the keys that kohya's tools read, and ours.

    Args:
        metadata: Entries to keep; they win over the ones made here, except those that would be untrue of the new file.
        family: The name of the adapter's family.
        shapes: Inputs and outputs by module path: they tell a family's models apart.
        rank: The largest rank.

    Returns:
        Strings by name.
    """
    carried_over = {name: value for name, value in metadata.items() if not name.startswith(_STALE)}
    files, named = family_named(family).files, family_named(family).architecture
    defaults = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{_version(family, shapes) or named}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "draft adapter",
    }
    if files.base_version:
        defaults["ss_base_model_version"] = files.base_version
    if files.resolution:
        defaults["modelspec.resolution"] = files.resolution
    fixed = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "draft.version": draft_version(),
    }
    return {**defaults, **carried_over, **fixed}


def _version(family: str, shapes: Mapping[str, tuple[int, int]]) -> str:
    """modelspec's name of the version where the modules show it; empty where the family's name will do."""
    if family == "sd3":
        if any(".attn2." in name for name in shapes):
            return "stable-diffusion-3-5-medium"
        wide = any(2432 in shape for shape in shapes.values())
        return "stable-diffusion-3-5-large" if wide else ""
    if family == "sd":
        # The width of the text that the UNet attends to is 768 for SD 1 and 1024 for SD 2.
        cross = max((inner for name, (inner, _) in shapes.items() if name.endswith("attn2.to_k")), default=0)
        return {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2"}.get(cross, "")
    return ""


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
