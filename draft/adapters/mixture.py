"""From adapter files to a mixed file that has been checked: what the command and the pipeline stage share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from draft.adapters.formats import Adapter, Format, read_adapter, write_adapter
from draft.adapters.metadata import draft_version
from draft.adapters.mix import mix, mix_errors
from draft.errors import StageError

# Rounding of two factors to a dtype, with room to spare; beyond it the written file is not the mix.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class MixReport:
    """What a mix came to.

    Args:
        modules: Modules in the mixed file.
        inputs: For every input its number of modules and how many of them have which rank.
        ranks: How many modules of the mix have which rank.
        dtype: Of the written factors, e.g. `float32`.
        error: The largest relative error of a module's dW in the file that was written, against the exact sum.
        worst: That module.
    """

    modules: int
    inputs: tuple[tuple[int, dict[int, int]], ...]
    ranks: dict[int, int]
    dtype: str
    error: float
    worst: str


def mix_files(
    inputs: Sequence[tuple[Path, float]],
    output: Path,
    *,
    format: Format = "auto",
    metadata: Mapping[str, str] | None = None,
) -> MixReport:
    """Mix adapter files exactly, write the sum, read it back and compare.

    Args:
        inputs: Files (or peft folders) with their weights.
        output: The file to write; it holds the recipe, with the inputs' sha256, in `draft.recipe`.
        format: As in `write_adapter`.
        metadata: Further header entries; they win.

    Returns:
        What was written and how exact it is.

    Raises:
        StageError: A file is unreadable, the adapters do not fit together, the output is one of the inputs, or what
            was written is not the sum.
    """
    for path, _ in inputs:
        if output.resolve() in (path.resolve(), (path / "adapter_model.safetensors").resolve()):
            raise StageError("the output is also an input", where=str(output), hint="write to another file")
    adapters = [(read_adapter(path), weight) for path, weight in inputs]
    mixed = mix(adapters)
    recipe = {
        "kind": "mix",
        "draft": draft_version(),
        "inputs": [{"sha256": _sha256(path), "weight": weight} for path, weight in inputs],
    }
    title = " + ".join(f"{weight:g} {path.stem}" for path, weight in inputs)
    header = {"draft.recipe": json.dumps(recipe, sort_keys=True), "modelspec.title": title, **(metadata or {})}
    write_adapter(mixed, output, format=format, metadata=header)
    errors = mix_errors(read_adapter(output), adapters)
    worst = max(errors, key=lambda name: errors[name])
    dtype = _dtype(mixed)
    if not errors[worst] <= _TOLERANCE[dtype]:
        output.unlink(missing_ok=True)
        raise StageError(
            f"the written file is not the sum: {worst} is off by {errors[worst]:.1e} (relative)",
            where=str(output),
            hint="please report this; the inputs are untouched and the file is removed",
        )
    sizes = tuple((len(adapter.modules), adapter.ranks) for adapter, _ in adapters)
    return MixReport(len(mixed.modules), sizes, mixed.ranks, str(dtype).removeprefix("torch."), errors[worst], worst)


def _dtype(adapter: Adapter) -> torch.dtype:
    """The coarsest dtype of the factors; it bounds the error."""
    dtypes = {tensor.dtype for factors in adapter.modules.values() for tensor in (factors.down, factors.up)}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _sha256(path: Path) -> str:
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
