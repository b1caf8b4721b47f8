"""What of an adapter file decides where it loads, and how strong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from draft.adapters.factors import Adapter
from draft.adapters.files.config import Alphas, read_alphas
from draft.adapters.files.container import read_tensors
from draft.adapters.files.header import read_header


@dataclass(frozen=True)
class Contents:
    """What of a file a tool's verdict depends on.

    Args:
        shapes: Shapes by tensor name, in the file's order.
        alphas: Values of the `.alpha` tensors by name.
        header: What the header says of alpha.
        in_header: Whether it says anything.
        strengths: By module path the factor of B A that the file means.
        targets: By part of the pipeline the modules that the header lists, as peft's `target_modules`; None where it
            says nothing of any.
    """

    shapes: Mapping[str, Sequence[int]]
    alphas: Mapping[str, float]
    header: Alphas
    in_header: bool
    strengths: Mapping[str, float]
    targets: Mapping[str, str | Sequence[str]] | None = None


def contents_of(file: Path, adapter: Adapter) -> Contents:
    """What of a file decides where it loads.

    Args:
        file: The safetensors file.
        adapter: What `read_adapter` made of it.

    Returns:
        Names, shapes and alphas as they are in the file, and the strengths it means.
    """
    header = read_header(file)
    ordered = sorted(header.tensors.items(), key=lambda item: item[1].start)
    named = [name for name, _ in ordered if name.endswith(".alpha")]
    alphas: dict[str, float] = {}
    if named:
        tensors, _ = read_tensors(file)
        alphas = {name: float(tensors[name].reshape(-1)[0]) for name in named}
    return Contents(
        shapes={name: info.shape for name, info in ordered},
        alphas=alphas,
        header=read_alphas(None, header.metadata, where=str(file)),
        in_header="lora_adapter_metadata" in header.metadata,
        strengths={name: factors.scale for name, factors in adapter.modules.items()},
        targets=_targets(header.metadata),
    )


def _targets(metadata: Mapping[str, str]) -> dict[str, str | Sequence[str]] | None:
    if "lora_adapter_metadata" not in metadata:
        return None
    entries = [(key.split("."), value) for key, value in json.loads(metadata["lora_adapter_metadata"]).items()]
    return {key[0]: value for key, value in entries if len(key) == 2 and key[1] == "target_modules" and value}
