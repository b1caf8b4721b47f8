"""A written adapter read back and held against what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from draft.adapters.algebra.deviation import deviation
from draft.adapters.changes import Terms
from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.config import CONFIG, is_folder, refuse_beside
from draft.adapters.files.container import cannot_write
from draft.adapters.files.formats import Format, write_adapter
from draft.adapters.parallel import each
from draft.errors import ResourceError, StageError
from draft.files import WEIGHTS, weights_file
from draft.outputs import publish
from draft.writing import sync

# Rounding of two factors to a dtype, with room to spare; beyond it the written file is wrong.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

T = TypeVar("T")


@dataclass(frozen=True)
class ReadBack:
    """How a written file compares with what was wanted.

    Args:
        error: The largest relative error of a module.
        worst: That module.
        total: The relative error over all modules together.
    """

    error: float
    worst: str
    total: float


def compare(
    written: Mapping[str, Factors],
    wanted: Terms,
    predicted: Mapping[str, float],
    *,
    dtype: torch.dtype,
    where: str,
    reader: str,
) -> ReadBack:
    """Compare every module's change with the one that was wanted.

    Args:
        written: What a reader found in the file.
        wanted: What each module's change should be.
        predicted: By module that should be there, the relative error that was chosen with the rank; 0 for none.
        dtype: The coarsest of the written factors; its rounding is allowed.
        where: The file, for errors.
        reader: Who read the file, for errors.

    Returns:
        The errors.

    Raises:
        StageError: A module is missing, there is one too many, or one's error is more than the predicted one.
    """
    missing = sorted(set(predicted) - set(written))
    foreign = sorted(set(written) - set(predicted))
    hint = "the inputs are untouched and nothing was written; "
    # What only another program gets wrong is a matter of the names it knows.
    hint += "please report this" if reader == "Draft" else "another --format may suit it, or --verify factors"
    for modules, what in ((missing, "lacks"), (foreign, "has, unasked,")):
        if modules:
            more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
            raise StageError(f"the written file, read by {reader}, {what} {modules[0]}{more}", where=where, hint=hint)
    error, worst, missed, size = -1.0, "", 0.0, 0.0
    deviations = each(lambda name: deviation(written[name], wanted(name)), predicted)
    for name, off in zip(predicted, deviations, strict=True):
        missed, size = missed + off.missed**2, size + off.size**2
        # Nothing of its rank comes nearer than predicted, so only too large an error can be wrong.
        if not off.relative <= predicted[name] + TOLERANCE[dtype]:
            expected = f", not {predicted[name]:.1e}" if predicted[name] else ""
            if _underflows(written[name]):
                hint = "its numbers are too small for float16: --dtype fp32 (or bf16) keeps them"
            raise StageError(
                f"the written file, read by {reader}, is not what was asked for: {name} is off by {off.relative:.1e}"
                f"{expected} (relative)",
                where=where,
                hint=hint,
            )
        if off.relative > error:
            error, worst = off.relative, name
    return ReadBack(error, worst, math.sqrt(missed / size) if size else 0.0)


def _underflows(factors: Factors) -> bool:
    """Whether most numbers are so small that float16 has fewer digits for them, or none."""
    tensors = [tensor for tensor in (factors.down, factors.up) if tensor.dtype == torch.float16]
    return any(float((tensor.abs() < torch.finfo(torch.float16).tiny).float().mean()) > 0.5 for tensor in tensors)


def write_checked(
    adapter: Adapter,
    output: Path,
    *,
    format: Format,
    metadata: Mapping[str, str],
    check: Callable[[Path], T],
    overwrite: bool = True,
) -> T:
    """Write an adapter to a temporary path, read it back, check it, and only then rename it.

    Whatever happens, `output` is what it was before or a complete file that passed.

    Args:
        adapter: What to write.
        output: The file, or with format `peft` the folder.
        format: As in `write_adapter`.
        metadata: As in `write_adapter`.
        check: Reads the file and raises if it is wrong.
        overwrite: Whether a file that is there, or comes to be there meanwhile, may be replaced.

    Returns:
        What `check` returned.

    Raises:
        StageError: As from `write_adapter` and `check`; nothing is left behind.
    """
    refuse_beside(output, format)
    try:
        with publish(output, overwrite=overwrite, folder=is_folder(output, format), holds=(WEIGHTS, CONFIG)) as partial:
            try:
                write_adapter(adapter, partial, format=format, metadata=metadata)
            except ResourceError as error:
                error.where = str(output)
                raise
            except StageError as error:
                raise StageError(error.what, where=str(output), hint=error.hint) from error
            try:
                # The disk is busy with the file while it is checked; whether it takes it, renaming finds out.
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(sync, weights_file(partial))
                    return check(partial)
            except StageError as error:
                error.where = str(output) if error.where == str(partial) else error.where
                raise
    except OSError as error:
        raise cannot_write(error, output) from error
