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
from draft.adapters.changes import Changes, Dora
from draft.adapters.factors import Adapter, Factors, fold
from draft.adapters.files.formats import Format, read_adapter, read_changes, refuse_structured
from draft.adapters.files.metadata import draft_version
from draft.adapters.identity import adapter_digest, file_digest, name_of, writes_over
from draft.adapters.inspect import Facts, facts_of
from draft.adapters.model.checkpoint import open_checkpoint
from draft.adapters.model.tensors import weights_of
from draft.adapters.readback import ReadBack, compare, write_checked
from draft.errors import StageError
from draft.files import weights_digest

Dtype = Literal["same", "fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Conversion:
    """What became of a file.

    Args:
        before: What was read; None where it holds what is no B A, which cannot be measured as such.
        after: What was written.
        nearest: The relative error of writing LoHa, LoKr and DoRA modules as B A of a rank, over these modules; None
            where there were none, or all ranks were cut.
        predicted: The relative error over all modules that smaller ranks cost, known before writing and rounding; None
            where the ranks were kept.
        read_back: How the written file, its rounding included, compares with the source as it is.
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
    base: Path | None = None,
    overwrite: bool = True,
) -> Conversion:
    """Write an adapter file under the names, and in the dtype, that were asked for; its change stays what it is.

    Args:
        source: A `.safetensors` file, or a peft folder.
        output: The file to write, or with format `peft` the folder.
        format: As in `write_adapter`.
        dtype: Of the factors; `same` keeps each module's.
        rank: For files of LoHa, LoKr or DoRA modules, which are no B A: the rank at which each is approximated.
        base: The model that a DoRA's change is of, a folder in diffusers' format or a safetensors checkpoint.
        overwrite: Whether an output that is there, or comes to be there meanwhile, may be replaced.

    Returns:
        What was read and written, and the error of reading it back.

    Raises:
        StageError: The source cannot be read, the output is the source or cannot be written, a rank is given but
            nothing needs one, or what was written is not what was read.
    """
    if rank is not None and rank < 1:
        raise StageError(f"the rank must be at least 1 (got {rank})")
    changes = _read(source, base)
    plain = {name: change for name, change in changes.modules.items() if isinstance(change, Factors)}
    others = {name: change for name, change in changes.modules.items() if name not in plain}
    modules, errors = dict(plain), dict.fromkeys(changes.modules, 0.0)
    nearest = predicted = None
    if rank is None:
        refuse_structured(changes, source)
    elif not others:
        raise StageError(
            "the file holds no LoHa, LoKr or DoRA modules, so that it needs no rank",
            where=str(source),
            hint=f"draft resize {source} --rank {rank} cuts the rank of a plain LoRA",
        )
    else:
        smaller = compress(Changes(others, changes.family), rank=rank, dtypes=_new_dtypes(changes, dtype))
        modules |= smaller.adapter.modules
        errors |= smaller.errors
        nearest, predicted = smaller.error, _over_all(changes, errors)
    written = _cast(Adapter(modules, changes.family, changes.metadata), dtype)
    options = {"format": format, "dtype": dtype, "rank": rank}
    header = _header("convert", source, changes.metadata, options, base=base, error=nearest)
    readback, after = _write(
        written, changes, output, source, errors, format=format, header=header, overwrite=overwrite
    )
    return Conversion(_before(source, changes), after, nearest, predicted, readback)


def resize_file(
    source: Path,
    output: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    format: Format = "auto",
    dtype: Dtype = "same",
    base: Path | None = None,
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
        base: As in `convert_file`.
        overwrite: As in `convert_file`.

    Returns:
        What was read and written, the predicted and the measured error.

    Raises:
        StageError: Not exactly one bound, the source cannot be read, the output is the source or cannot be written, or
            the written file is further off than predicted.
    """
    changes = _read(source, base)
    dtypes = _new_dtypes(changes, dtype)
    smaller = compress(changes, rank=rank, energy=energy, max_error=max_error, dtypes=dtypes)
    bounds = {"rank": rank, "energy": energy, "max_error": max_error, "format": format, "dtype": dtype}
    written = _cast(smaller.adapter, dtype)
    header = _header("resize", source, changes.metadata, bounds, base=base, error=smaller.error)
    readback, after = _write(
        written, changes, output, source, smaller.errors, format=format, header=header, overwrite=overwrite
    )
    return Conversion(_before(source, changes), after, None, smaller.error, readback)


def _read(source: Path, base: Path | None) -> Changes:
    if base is None:
        return read_changes(source, mapped=True)
    changes = read_changes(source, base=weights_of(open_checkpoint(base)), mapped=True)
    if not any(isinstance(change, Dora) for change in changes.modules.values()):
        raise StageError("the file holds no DoRA modules, so that it needs no base", where=str(source))
    return changes


def _new_dtypes(changes: Changes, dtype: Dtype) -> dict[str, torch.dtype]:
    """What modules that are no factors are rounded to, once; those of factors keep theirs until they are cast."""
    if dtype == "same":
        return {}
    return {name: _DTYPES[dtype] for name, change in changes.modules.items() if not isinstance(change, Factors)}


def _over_all(changes: Changes, errors: Mapping[str, float]) -> float:
    """The relative error over all modules together."""
    sizes = {name: deviation(None, [(change, 1.0)]).size for name, change in changes.modules.items()}
    size = sum(size**2 for size in sizes.values())
    return math.sqrt(sum((errors[name] * sizes[name]) ** 2 for name in sizes) / size) if size else 0.0


def _before(source: Path, changes: Changes) -> Facts | None:
    modules = {name: change for name, change in changes.modules.items() if isinstance(change, Factors)}
    if len(modules) < len(changes.modules):
        return None
    return facts_of(source, Adapter(modules, changes.family, changes.metadata))


def _write(
    written: Adapter,
    wanted: Changes,
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
        reread = read_adapter(path, mapped=True)
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
    modules = dict(adapter.modules)
    for name, factors in adapter.modules.items():
        new = factors.stored if dtype == "same" else _DTYPES[dtype]
        if new is not None:
            wide = fold(Factors(factors.down.double(), factors.up.double(), factors.scale))
            modules[name] = Factors(wide.down.to(new), wide.up.to(new))
    return replace(adapter, modules=modules)


def _header(
    kind: str,
    source: Path,
    metadata: Mapping[str, str],
    changes: Mapping[str, Any],
    *,
    base: Path | None,
    error: float | None,
) -> dict[str, str]:
    """`draft.recipe`, with the input's own recipe inside, and of a conversion the evaluation, which still holds."""
    digest = adapter_digest(source, weights=file_digest(source))
    entry: dict[str, Any] = {"name": name_of(source), "sha256": digest, "weight": 1.0}
    for key in ("recipe", "pipeline"):
        if text := metadata.get(f"draft.{key}"):
            entry[key] = _parsed(text)
    recipe = {
        "kind": kind,
        "draft": draft_version(),
        "inputs": [entry],
        **changes,
        **({} if base is None else {"base": {"name": base.name, "sha256": weights_digest(base)}}),
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
    except (ValueError, RecursionError):
        return text


def _coarsest(adapter: Adapter) -> torch.dtype:
    """The coarsest dtype of the factors; it bounds the error."""
    dtypes = {tensor.dtype for factors in adapter.modules.values() for tensor in (factors.down, factors.up)}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
