"""Adapters merged into a model's own weights, tensor by tensor, with the share of them that survives the dtype."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from draft.adapters.algebra.mix import ExactSum, Weight, module_names
from draft.adapters.changes import Changes, dense_sum, inputs_of, outputs_of
from draft.adapters.files.metadata import draft_version
from draft.adapters.identity import name_of
from draft.adapters.inputs import left_out, read_inputs, skipped_of
from draft.adapters.model.adding import Tally, add_rounded
from draft.adapters.model.checkpoint import Checkpoint, WeightsFile, open_checkpoint
from draft.adapters.model.tensors import check_dtype, oriented, plain, read_rows, weights_of
from draft.adapters.model.writing import Cast, stale, write_model
from draft.adapters.recipe import input_entry
from draft.adapters.selection import module_weights
from draft.adapters.settings import MixSettings
from draft.adapters.skipped import Skipped
from draft.adapters.strength import Strength
from draft.errors import DraftWarning, StageError
from draft.files import weights_digest

SURVIVES = 0.9
"""Below this surviving share a merge warns."""

_NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class MergeReport:
    """What a merge came to.

    Args:
        inputs: For every input its path, its strength and how many modules it has.
        modules: How many modules were changed.
        dtypes: How many of them were written in which dtype.
        total: Over all modules together.
        by_module: Of each; those whose change is 0 are not among them.
        dropped: Modules of the inputs that were left out by a factor of 0.
        skipped: Tensors of the inputs that could not be read and were left out, with the path of the input.
        unused: Files of the model with the same weights (other variants, pickles) that are not in the output.
        size: Bytes of the files with weights that were changed.
    """

    inputs: tuple[tuple[Path, Strength, int], ...]
    modules: int
    dtypes: Mapping[str, int]
    total: Tally
    by_module: Mapping[str, Tally]
    dropped: tuple[str, ...]
    skipped: tuple[tuple[Path, Skipped], ...]
    unused: tuple[str, ...]
    size: int

    @property
    def worst(self) -> str:
        """The module with the smallest surviving share; empty where there is none."""
        return min(self.by_module, key=lambda name: self.by_module[name].share, default="")


@dataclass
class _Work:
    """A merge in progress."""

    exact: ExactSum
    dtype: str
    by_module: dict[str, Tally] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)


def merge_files(
    model: Path,
    inputs: Sequence[tuple[Path, float | Strength]],
    output: Path,
    *,
    components: Mapping[str, float] | None = None,
    blocks: Mapping[str, float] | None = None,
    skip: Sequence[str] = (),
    dtype: str = "same",
    dry_run: bool = False,
    overwrite: bool = True,
) -> MergeReport:
    """Add adapters to a model's weights, W' = round(W + sum_i w_i dW_i), and write the whole model.

    One tensor is in memory at a time. Each change is computed in float64, added in float64 and rounded once.

    Args:
        model: A folder in diffusers' format, or a safetensors checkpoint.
        inputs: Adapters with weights, as in `mix_files`.
        output: The folder or the file to write, as the model is one; it appears once it is complete.
        components: As in `MixSettings`.
        blocks: As in `MixSettings`.
        skip: As in `MixSettings`.
        dtype: Of the floats in every file that is changed: `same` as they are, `fp32`, `fp16` or `bf16`.
        dry_run: Compute everything, write nothing.
        overwrite: Whether a model that is there may be replaced.

    Returns:
        What was changed and what of it survived rounding.

    Raises:
        StageError: A file cannot be read, an adapter has modules that the model lacks or that differ in shape, a weight
            would not be finite, or the output is one of the inputs or cannot be written; nothing is left behind.
    """
    checkpoint = open_checkpoint(model)
    settings = MixSettings(components=dict(components or {}), blocks=dict(blocks or {}), skip=tuple(skip))
    files, terms, digests = read_inputs(inputs, settings, structured=True, base=weights_of(checkpoint))
    names = module_names(terms)
    factors = module_weights(names, components=settings.components, blocks=settings.blocks)
    chosen = {name: factor for name, factor in factors.items() if factor != 0 and not left_out(name, terms)}
    if not chosen:
        raise StageError(f"nothing is left to merge: all {len(names)} modules have the factor 0")
    _refuse_foreign(checkpoint, terms, chosen)
    work = _Work(ExactSum(terms, chosen), dtype)
    by_tensor = _by_tensor(checkpoint, chosen)
    paths = {path for path, _ in by_tensor}
    parts = {file.component for file in checkpoint.files if file.path in paths}
    # In another dtype all shards of a part are written, so that it has one.
    changed = [file for file in checkpoint.files if file.path in paths or (dtype != "same" and file.component in parts)]
    entries = [
        input_entry(name_of(path), digest, strength, adapter.metadata, [s.tensor for s in adapter.skipped])
        for (path, strengths), digest, (adapter, _) in zip(files, digests, terms, strict=True)
        for strength in strengths
    ]
    recipe = {
        "kind": "merge",
        "draft": draft_version(),
        "model": {"name": model.name, "sha256": weights_digest(model)},
        "inputs": entries,
        "components": settings.components,
        "blocks": settings.blocks,
        **({"skip": list(skip)} if skip else {}),
        "dtype": dtype,
    }
    notes = {"draft.recipe": json.dumps(recipe, sort_keys=True), "draft.version": draft_version()}
    size = write_model(
        checkpoint,
        output,
        changed=changed,
        dtype=_NAMES.get(dtype),
        metadata=lambda header: {"format": "pt", **stale(header.metadata), **notes},
        change=lambda file, name, cast: _changed(file, name, by_tensor, cast, work),
        dry_run=dry_run,
        overwrite=overwrite,
    )
    total = Tally(*(math.fsum(getattr(t, key) for t in work.by_module.values()) for key in ("size", "missed", "along")))
    report = MergeReport(
        inputs=tuple(
            (path, strength, len(adapter.modules))
            for (path, strengths), (adapter, _) in zip(files, terms, strict=True)
            for strength in strengths
        ),
        modules=len(chosen),
        dtypes=dict(sorted(work.dtypes.items())),
        total=total,
        by_module={name: tally for name, tally in sorted(work.by_module.items()) if tally.size > 0},
        dropped=tuple(name for name in names if name not in chosen),
        skipped=skipped_of(files, terms),
        unused=tuple(
            str(path.relative_to(model))
            for path in checkpoint.unused
            if path.parent in {file.path.parent for file in changed}
        ),
        size=size,
    )
    _warn(report, checkpoint)
    return report


def _refuse_foreign(
    checkpoint: Checkpoint, terms: Sequence[tuple[Changes, Weight]], chosen: Mapping[str, float]
) -> None:
    """Refuse modules that the model lacks, or has in another shape."""
    where = str(checkpoint.path)
    lacking = [name for name in chosen if checkpoint.weight(name) is None]
    pickled = sorted({name.partition(".")[0] for name in lacking} & set(checkpoint.pickled))
    if pickled:
        raise StageError(
            f"the weights of the model's {' and '.join(pickled)} are pickles",
            where=where,
            hint="pickle files are never opened, loading one can run code; save the model as safetensors",
        )
    family = terms[0][0].family
    if lacking and len(lacking) == len(chosen):
        known = f" (it is of the family {checkpoint.family.name})" if checkpoint.family else ""
        raise StageError(
            f"the model has none of the {len(chosen)} modules of the adapters, which are of the family {family}{known}",
            where=where,
            hint=f"one of them is {lacking[0]}",
        )
    if lacking:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise StageError(
            f"the model lacks {len(lacking)} of the {len(chosen)} modules of the adapters ({shown})",
            where=where,
            hint=f"they are for another base model; --block '{lacking[0]}=0' leaves one out",
        )
    for name in chosen:
        location = checkpoint.weight(name)
        first = next(adapter.modules[name] for adapter, _ in terms if name in adapter.modules)
        change = (outputs_of(first), *inputs_of(first))
        if location is None or plain(location.shape) != plain(change):
            has = "" if location is None else " x ".join(map(str, location.shape))
            raise StageError(
                f"{name} is {has} in the model, its change {' x '.join(map(str, change))}",
                where=where,
                hint="the adapter is for another base model",
            )
        check_dtype(location.file, location.tensor)


def _by_tensor(checkpoint: Checkpoint, chosen: Mapping[str, float]) -> dict[tuple[Path, str], list[str]]:
    grouped: dict[tuple[Path, str], list[str]] = {}
    for name in chosen:
        location = checkpoint.weight(name)
        if location is not None:
            grouped.setdefault((location.file.path, location.tensor), []).append(f"{name}.weight")
    return grouped


def _changed(
    file: WeightsFile, tensor: str, by_tensor: Mapping[tuple[Path, str], list[str]], cast: Cast, work: _Work
) -> Tensor | None:
    """A tensor with the changes of its modules, rounded; None where none of them is in it."""
    names = by_tensor.get((file.path, tensor))
    if names is None:
        return None
    info = file.header.tensors[tensor]
    whole = read_rows(file, tensor, slice(0, info.shape[0]))
    written = torch.empty(info.shape, dtype=cast.dtype(info.dtype))
    left = torch.ones(info.shape[0], dtype=torch.bool)
    for name in names:
        location = cast.tensors[name]
        change = oriented(dense_sum(work.exact.terms(location.piece.module)), location.piece)
        left[location.rows] = False
        tally = work.by_module.setdefault(location.piece.module, Tally())
        where = f"{file.path}, {location.piece.module}"
        add_rounded(whole[location.rows], change, written[location.rows], tally, where=where)
        kind = str(written.dtype).removeprefix("torch.")
        work.dtypes[kind] = work.dtypes.get(kind, 0) + 1
    written[left] = whole[left].to(written.dtype)
    return written


def _warn(report: MergeReport, checkpoint: Checkpoint) -> None:
    if report.by_module and report.total.share < SURVIVES:
        kinds = " and ".join(report.dtypes)
        text = (
            f"only {report.total.share:.1%} of the change survives rounding to {kinds}: it is small beside the weights"
        )
        warnings.warn(DraftWarning(f"{text}; --dtype fp32 keeps it"), stacklevel=3)
    averaged = sum(name.startswith("model_ema.") for file in checkpoint.files for name in file.header.tensors)
    if averaged:
        text = f"{averaged} tensors of averaged weights (model_ema.) stay as they are, without the adapters"
        warnings.warn(DraftWarning(text), stacklevel=3)
