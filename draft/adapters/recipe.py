"""What a mixed file says about its making, so that it can be made again: its recipe, its title, where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from draft.adapters.files.metadata import draft_version
from draft.adapters.settings import MixSettings
from draft.adapters.strength import Strength

# Told of every input, since each holds for the whole.
_UNIONS = ("modelspec.license", "modelspec.trigger_phrase", "modelspec.tags")


def recipe_header(
    inputs: Sequence[tuple[str, str, Strength, Mapping[str, str], Sequence[str]]],
    settings: MixSettings,
    *,
    seed: int,
    error: float | None,
) -> dict[str, str]:
    """The header entries of a mixed file: `draft.recipe` and what other programs show.

    Args:
        inputs: For every input its name (a file's stem), its sha256, its strength, its header and the tensors that were
            skipped.
        settings: How they were mixed.
        seed: Of `dare`.
        error: The predicted error of a smaller rank; None where there is none.

    Returns:
        Entries; no time, host or folder is among them.
    """
    algebra = {
        "method": settings.method,
        "rank": settings.rank,
        "energy": settings.energy,
        "max_error": settings.max_error,
        "components": dict(settings.components),
        "blocks": dict(settings.blocks),
        "normalize": settings.normalize,
        "density": settings.density,
        "seed": seed if settings.method == "dare" else None,
        "dtype": settings.dtype,
        "format": settings.format,
        **({"skip": list(settings.skip)} if settings.skip else {}),
    }
    recipe = {
        "kind": "mix",
        "draft": draft_version(),
        "inputs": [input_entry(*entry) for entry in inputs],
        **algebra,
        # In the last digits linear algebra differs from machine to machine.
        "error": None if error is None else float(f"{error:.4g}"),
    }
    header = {
        "draft.recipe": json.dumps(recipe, sort_keys=True),
        "modelspec.title": " + ".join(f"{strength} {name}" for name, _, strength, _, _ in inputs),
        "modelspec.merged_from": ", ".join(_title(name, metadata) for name, _, _, metadata, _ in inputs),
    }
    for key in _UNIONS:
        values = list(dict.fromkeys(metadata[key] for _, _, _, metadata, _ in inputs if metadata.get(key)))
        if values:
            header[key] = ", ".join(values)
    return header


def input_entry(
    name: str, digest: str, strength: Strength, metadata: Mapping[str, str], skipped: Sequence[str]
) -> dict[str, Any]:
    """One input in a recipe, with its own recipe and pipeline inside.

    Args:
        name: A file's stem.
        digest: Its sha256.
        strength: How strongly it takes part.
        metadata: Its header.
        skipped: Its tensors that were left out because they cannot be read.

    Returns:
        Plain data.
    """
    entry: dict[str, Any] = {"name": name, "sha256": digest, "weight": strength.weight}
    if strength.text_encoder is not None:
        entry["text_encoder"] = strength.text_encoder
    if strength.blocks:
        entry["blocks"] = dict(strength.blocks)
    if skipped:
        entry["skipped"] = list(skipped)
    for key in ("recipe", "pipeline"):
        if text := metadata.get(f"draft.{key}"):
            entry[key] = _parsed(text)
    return entry


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _title(name: str, metadata: Mapping[str, str]) -> str:
    title = metadata.get("modelspec.title", "")
    return name if title in ("", "draft adapter") else title
