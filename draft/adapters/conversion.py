"""An adapter file written anew: under other names, in another dtype, at smaller ranks, and held against what it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from draft.adapters.algebra.compress import compress
from draft.adapters.algebra.deviation import deviation
from draft.adapters.factors import Adapter, Factors, fold
from draft.adapters.files.config import config_file, read_alphas, read_config
from draft.adapters.files.container import read_tensors
from draft.adapters.files.formats import Format, read_adapter
from draft.adapters.files.lycoris import is_lycoris
from draft.adapters.files.metadata import draft_version
from draft.adapters.files.reading import grouped_tensors, module_factors
from draft.adapters.identity import adapter_digest, writes_over
from draft.adapters.inspect import Facts, facts_of
from draft.adapters.readback import ReadBack, compare, write_checked
from draft.errors import StageError

Dtype = Literal["same", "fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# No LoHa or LoKr has a higher rank, so this reads them whole.
_WHOLE = 2**31


@dataclass(frozen=True)
class Conversion:
    """What became of a file.

    Args:
        before: What was read; None where it holds what is no B A, which cannot be measured as such.
        after: What was written.
        nearest: The relative error of writing LoHa and LoKr modules as B A of a rank; None where there were none.
        predicted: The relative error over all modules that smaller ranks cost, known before writing; None where the
            ranks were kept.
        read_back: How the written file compares with what was read.
    """

    before: Facts | None
    after: Facts
    nearest: float | None
    predicted: float | None
    read_back: ReadBack


def convert_file(
    source: Path,
    output: Path,
    *,
    format: Format = "auto",
    dtype: Dtype = "same",
    rank: int | None = None,
    overwrite: bool = True,
) -> Conversion:
    """Write an adapter file under the names, and in the dtype, that were asked for; its change stays what it is.

    Args:
        source: A `.safetensors` file, or a peft folder.
        output: The file to write, or with format `peft` the folder.
        format: As in `write_adapter`.
        dtype: Of the factors; `same` keeps each module's.
        rank: For files of LoHa or LoKr modules, which are no B A: the rank at which each is approximated.
        overwrite: Whether an output that is there, or comes to be there meanwhile, may be replaced.

    Returns:
        What was read and written, and the error of reading it back.

    Raises:
        StageError: The source cannot be read, the output is the source or cannot be written, a rank is given but
            nothing needs one, or what was written is not what was read.
    """
    adapter = read_adapter(source, dense_rank=rank)
    nearest = None
    if rank is not None:
        nearest = _nearest_error(source, rank)
        if nearest is None:
            raise StageError(
                "the file holds no LoHa or LoKr modules, so that it needs no rank",
                where=str(source),
                hint=f"draft resize {source} --rank {rank} cuts the rank of a plain LoRA",
            )
    changes = {"format": format, "dtype": dtype, "rank": rank}
    written = _cast(adapter, dtype)
    before = None if rank is not None else facts_of(source, adapter)
    header = _header("convert", source, adapter.metadata, changes, error=nearest)
    exact = dict.fromkeys(adapter.modules, 0.0)
    readback, after = _write(written, adapter, output, source, exact, format=format, header=header, overwrite=overwrite)
    return Conversion(before, after, nearest, None, readback)


def resize_file(
    source: Path,
    output: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    format: Format = "auto",
    dtype: Dtype = "same",
    overwrite: bool = True,
) -> Conversion:
    """Cut an adapter file to a smaller rank, the best there is, with an error that is known beforehand.

    Args:
        source: A `.safetensors` file, or a peft folder.
        output: The file to write, or with format `peft` the folder.
        rank: As in `compress`: the largest rank of a module.
        energy: As in `compress`: the share of the squared singular values that every module keeps.
        max_error: As in `compress`: the relative error of all modules together.
        format: As in `write_adapter`.
        dtype: Of the factors; `same` keeps each module's.
        overwrite: As in `convert_file`.

    Returns:
        What was read and written, the predicted and the measured error.

    Raises:
        StageError: Not exactly one bound, the source cannot be read, the output is the source or cannot be written, or
            the written file is further off than predicted.
    """
    adapter = read_adapter(source)
    smaller = compress(adapter, rank=rank, energy=energy, max_error=max_error)
    bounds = {"rank": rank, "energy": energy, "max_error": max_error, "format": format, "dtype": dtype}
    written = _cast(smaller.adapter, dtype)
    header = _header("resize", source, adapter.metadata, bounds, error=smaller.error)
    readback, after = _write(
        written, adapter, output, source, smaller.errors, format=format, header=header, overwrite=overwrite
    )
    return Conversion(facts_of(source, adapter), after, None, smaller.error, readback)


def _write(
    written: Adapter,
    wanted: Adapter,
    output: Path,
    source: Path,
    predicted: Mapping[str, float],
    *,
    format: Format,
    header: Mapping[str, str],
    overwrite: bool,
) -> tuple[ReadBack, Facts]:
    if writes_over(output, source):
        raise StageError("the output is also the input", where=str(output), hint="write to another file")
    metadata = {name: value for name, value in wanted.metadata.items() if not name.startswith("draft.")}

    def check(path: Path) -> tuple[ReadBack, Facts]:
        reread = read_adapter(path)
        readback = compare(
            reread.modules,
            lambda name: [(wanted.modules[name], 1.0)],
            predicted,
            dtype=_coarsest(written),
            where=str(output),
            reader="Draft",
        )
        return readback, replace(facts_of(path, reread), path=output)

    return write_checked(
        replace(written, metadata=metadata), output, format=format, metadata=header, check=check, overwrite=overwrite
    )


def _cast(adapter: Adapter, dtype: Dtype) -> Adapter:
    """Fold the scale in while the factors have all their digits, then round them."""
    if dtype == "same":
        return adapter
    modules = {}
    for name, factors in adapter.modules.items():
        wide = fold(Factors(factors.down.double(), factors.up.double(), factors.scale))
        modules[name] = Factors(wide.down.to(_DTYPES[dtype]), wide.up.to(_DTYPES[dtype]))
    return replace(adapter, modules=modules)


def _header(
    kind: str, source: Path, metadata: Mapping[str, str], changes: Mapping[str, Any], *, error: float | None
) -> dict[str, str]:
    """`draft.recipe`, with the input's own recipe inside, and of a conversion the evaluation, which still holds."""
    entry: dict[str, Any] = {"name": source.stem or source.name, "sha256": adapter_digest(source), "weight": 1.0}
    for key in ("recipe", "pipeline"):
        if text := metadata.get(f"draft.{key}"):
            entry[key] = _parsed(text)
    recipe = {
        "kind": kind,
        "draft": draft_version(),
        "inputs": [entry],
        **changes,
        # In the last digits linear algebra differs from machine to machine.
        "error": None if error is None else float(f"{error:.4g}"),
    }
    header = {"draft.recipe": json.dumps(recipe, sort_keys=True)}
    if kind == "convert" and error is None and "draft.evaluation" in metadata:
        header["draft.evaluation"] = metadata["draft.evaluation"]
    return header


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _nearest_error(source: Path, rank: int) -> float | None:
    """The relative error over all LoHa and LoKr modules of reading them at a rank, each taken whole for a moment."""
    tensors, metadata = read_tensors(source)
    where = str(source)
    config = read_config(config_file(source))
    alphas = read_alphas(config, metadata, where=where)
    missed, size = 0.0, 0.0
    any_lycoris = False
    for name, parts in sorted(grouped_tensors(tensors, metadata, where=where).items()):
        if not is_lycoris(parts):
            continue
        any_lycoris = True
        near, whole = (
            module_factors(name, parts, alphas, dense_rank=dense_rank, where=where) for dense_rank in (rank, _WHOLE)
        )
        off = deviation(near, [(whole, 1.0)])
        missed, size = missed + off.missed**2, size + off.size**2
    return None if not any_lycoris else math.sqrt(missed / size) if size else 0.0


def _coarsest(adapter: Adapter) -> torch.dtype:
    """The coarsest dtype of the factors; it bounds the error."""
    dtypes = {tensor.dtype for factors in adapter.modules.values() for tensor in (factors.down, factors.up)}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
