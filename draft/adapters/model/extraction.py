"""A LoRA out of two models: the difference of their weights, at a smaller rank with a known error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from draft.adapters.algebra.compress import compress
from draft.adapters.changes import Change, Changes, Whole
from draft.adapters.factors import Adapter
from draft.adapters.files.formats import Format, read_adapter
from draft.adapters.files.metadata import draft_version
from draft.adapters.model.checkpoint import Checkpoint, Location, open_checkpoint
from draft.adapters.model.layout import is_layer
from draft.adapters.model.tensors import DTYPES, check_dtype, read_piece
from draft.adapters.readback import compare, write_checked
from draft.errors import StageError
from draft.files import weights_digest

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BUFFERS = ("position_ids", "logit_scale")


@dataclass(frozen=True)
class Lost:
    """A tensor that changed and that no LoRA holds.

    Args:
        norm: ||dW||_F.
        relative: ||dW||_F / ||W||_F of the base model; infinite where that is 0.
    """

    norm: float
    relative: float


@dataclass(frozen=True)
class Extraction:
    """What an extraction came to.

    Args:
        modules: Modules in the file, those whose weights differ.
        unchanged: Layers whose weights are the same in both models.
        ranks: How many modules have which rank.
        dtypes: How many factors are in which dtype.
        error: ||dW - B A||_F / ||dW||_F over all modules, against the dense difference, after rounding.
        predicted: The same before rounding, from the singular values that were cut.
        largest: The largest of a module.
        worst: That module.
        lost: Tensors that changed and that no LoRA holds, by diffusers' name, the largest change first.
        overall: The relative error with what is lost, over all tensors that both models have.
        not_compared: Tensors that one of the models lacks under that name, or that hold no floats.
        size: Bytes of the file.
    """

    modules: int
    unchanged: int
    ranks: Mapping[int, int]
    dtypes: Mapping[str, int]
    error: float
    predicted: float
    largest: float
    worst: str
    lost: Mapping[str, Lost]
    overall: float
    not_compared: tuple[str, ...]
    size: int


class _Differences(Mapping[str, Change]):
    """The dense differences of layers, each read when it is asked for: one at a time is in memory."""

    def __init__(self, pairs: Mapping[str, tuple[Location, Location]]) -> None:
        self._pairs = pairs

    def __getitem__(self, name: str) -> Whole:
        """A module's tuned weight minus its base weight."""
        base, tuned = self._pairs[name]
        return Whole(_difference(base, tuned).flatten(1), base.shape[1:])

    def __iter__(self) -> Iterator[str]:
        """Module paths, sorted."""
        return iter(sorted(self._pairs))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._pairs)


def extract_files(
    base: Path,
    tuned: Path,
    output: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    format: Format = "auto",
    dtype: str = "same",
    overwrite: bool = True,
) -> Extraction:
    """Write the LoRA that is nearest to the difference of two models (Eckart and Young, 1936).

    Args:
        base: A folder in diffusers' format, or a safetensors checkpoint.
        tuned: Another one of the same architecture; it may be a folder where the other is a file.
        output: The file to write; `draft.recipe` in its header has the error.
        rank: As in `compress`: the largest rank of a module.
        energy: As in `compress`: the share of the squared singular values that every module keeps.
        max_error: As in `compress`: the relative error of all modules together.
        format: As in `write_adapter`.
        dtype: Of the factors; `same` is the wider one of both models, in each module.
        overwrite: Whether a file that is there may be replaced.

    Returns:
        What was written, how far it is from the difference, and what no LoRA holds.

    Raises:
        StageError: A model cannot be read, they are of different families or shapes, nothing in them differs that a
            LoRA could hold, a difference is not finite, not exactly one bound is given, or the disk refuses.
    """
    models = open_checkpoint(base), open_checkpoint(tuned)
    family = _family(*models)
    shared = {name: (models[0].tensors[name], location) for name, location in models[1].tensors.items()
              if name in models[0].tensors}  # fmt: skip
    layers, lost, not_compared, unchanged = _sorted(models, shared)
    if not layers:
        what = f"no linear layer or convolution differs between the models ({unchanged} are the same"
        raise StageError(f"{what}, {len(lost)} other tensors differ)", where=str(tuned), hint=f"the base is {base}")
    changes = _Differences(layers)
    dtypes = {name: _DTYPES.get(dtype) or _wider(*pair) for name, pair in layers.items()}
    smaller = compress(Changes(changes, family), rank=rank, energy=energy, max_error=max_error, dtypes=dtypes)
    errors, missed, size = _measured(smaller.adapter, changes)
    worst = max(errors, key=lambda name: errors[name])
    lost_squared = math.fsum(each.norm**2 for each in lost.values())
    error, overall = math.sqrt(missed / size), math.sqrt((missed + lost_squared) / (size + lost_squared))
    recipe = {
        "kind": "extract",
        "draft": draft_version(),
        "base": {"name": base.name, "sha256": weights_digest(base)},
        "tuned": {"name": tuned.name, "sha256": weights_digest(tuned)},
        "rank": rank,
        "energy": energy,
        "max_error": max_error,
        "dtype": dtype,
        "format": format,
        # In the last digits linear algebra differs from machine to machine.
        "error": float(f"{error:.4g}"),
        "error_with_what_is_lost": float(f"{overall:.4g}"),
        "lost": {"tensors": len(lost), "norm": float(f"{math.sqrt(lost_squared):.4g}")},
    }
    header = {"draft.recipe": json.dumps(recipe, sort_keys=True), "modelspec.title": f"{tuned.stem} - {base.stem}"}
    written = smaller.adapter

    def check(path: Path) -> int:
        exact = dict.fromkeys(written.modules, 0.0)
        coarsest = max(dtypes.values(), key=lambda dtype: torch.finfo(dtype).eps)
        compare(
            read_adapter(path).modules,
            lambda name: [(written.modules[name], 1.0)],
            exact,
            dtype=coarsest,
            where=str(output),
            reader="Draft",
        )
        return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))

    bytes_written = write_checked(
        replace(written, metadata={}), output, format=format, metadata=header, check=check, overwrite=overwrite
    )
    kinds = [str(dtypes[name]).removeprefix("torch.") for name in written.modules]
    return Extraction(
        modules=len(written.modules),
        unchanged=unchanged,
        ranks=written.ranks,
        dtypes={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        error=error,
        predicted=smaller.error,
        largest=errors[worst],
        worst=worst,
        lost=dict(sorted(lost.items(), key=lambda item: -item[1].norm)),
        overall=overall,
        not_compared=not_compared,
        size=bytes_written,
    )


def _family(base: Checkpoint, tuned: Checkpoint) -> str:
    for model in (base, tuned):
        if model.family is None:
            raise StageError(
                "the model is of no known family, so that no program could load its LoRA", where=str(model.path)
            )
    names = [model.family.name for model in (base, tuned) if model.family is not None]
    if names[0] != names[1]:
        raise StageError(f"the models are of different families (got {names[0]} and {names[1]})", where=str(tuned.path))
    return names[0]


def _sorted(
    models: tuple[Checkpoint, Checkpoint], shared: Mapping[str, tuple[Location, Location]]
) -> tuple[dict[str, tuple[Location, Location]], dict[str, Lost], tuple[str, ...], int]:
    """The layers that differ, the other tensors that do, what could not be compared, and how many layers are equal."""
    layers: dict[str, tuple[Location, Location]] = {}
    lost: dict[str, Lost] = {}
    apart = set(models[0].tensors) ^ set(models[1].tensors)
    unchanged = 0
    for name, (base, tuned) in shared.items():
        if name.endswith(_BUFFERS):
            continue
        layer = len(base.shape) in (2, 4) and base.piece.module != "" and is_layer(base.piece.module)
        if base.shape != tuned.shape:
            shapes = " and ".join(" x ".join(map(str, each.shape)) for each in (base, tuned))
            raise StageError(f"the models disagree about the shape of {name} (got {shapes})", where=str(models[1].path))
        if not layer and not {base.info.dtype, tuned.info.dtype} <= set(DTYPES):
            apart.add(name)
            continue
        change = _difference(base, tuned)
        norm = float(torch.linalg.vector_norm(change))
        if not math.isfinite(norm):
            raise StageError(f"{name} has values that are not finite", where=str(models[1].path))
        if layer:
            unchanged += norm == 0
            layers |= {base.piece.module: (base, tuned)} if norm else {}
        elif norm:
            whole = float(torch.linalg.vector_norm(read_piece(base).double()))
            lost[name] = Lost(norm, norm / whole if whole else math.inf)
    return layers, lost, tuple(sorted(name for name in apart if not name.endswith(_BUFFERS))), unchanged


def _difference(base: Location, tuned: Location) -> Tensor:
    for location in (base, tuned):
        check_dtype(location.file, location.tensor)
    return read_piece(tuned).double() - read_piece(base).double()


def _wider(base: Location, tuned: Location) -> torch.dtype:
    return torch.promote_types(DTYPES[base.info.dtype], DTYPES[tuned.info.dtype])


def _measured(adapter: Adapter, changes: _Differences) -> tuple[dict[str, float], float, float]:
    """Relative errors by module, and the squares of what is missed and of the whole, of factors as they are written."""
    errors, missed, size = {}, [], []
    for name, factors in adapter.modules.items():
        change = changes[name].matrix
        left = change - factors.up.double().flatten(1) @ factors.down.double().flatten(1)
        missed.append(float(left.square().sum()))
        size.append(float(change.square().sum()))
        errors[name] = math.sqrt(missed[-1] / size[-1])
        if not math.isfinite(errors[name]):
            kind = str(factors.down.dtype).removeprefix("torch.")
            raise StageError(f"the change of {name} is too large for {kind}", hint="--dtype bf16 or fp32")
    return errors, math.fsum(missed), math.fsum(size)
