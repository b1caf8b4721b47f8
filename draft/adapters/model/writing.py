"""A model written anew with some of its tensors changed, streamed, and complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from draft.adapters.files.container import cannot_write
from draft.adapters.files.header import Header, TensorInfo
from draft.adapters.model.checkpoint import INDEX, Checkpoint, Location, WeightsFile
from draft.adapters.model.tensors import DTYPES, read_rows
from draft.errors import StageError
from draft.outputs import publish
from draft.writing import sync

_STALE = ("sshs_", "modelspec.hash", "modelspec.date", "draft.")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".h5", ".xml")
_BUFFER = 16 * 2**20


@dataclass(frozen=True)
class Cast:
    """In which dtypes tensors are written.

    Args:
        name: The format's name of the dtype of all floats; None: as they are.
        tensors: Where the model's tensors are.
    """

    name: str | None
    tensors: Mapping[str, Location]

    def dtype(self, source: str) -> torch.dtype:
        """The dtype of a tensor that is in `source`."""
        return DTYPES[self.target(source)]

    def target(self, source: str) -> str:
        """The format's name for it; what is no float of `DTYPES` stays what it is."""
        return self.name if self.name and source in DTYPES else source


Change = Callable[[WeightsFile, str, Cast], Tensor | None]
"""From a file and a tensor's name to its new value, or None where it stays what it is."""


def write_model(
    checkpoint: Checkpoint,
    output: Path,
    *,
    changed: Sequence[WeightsFile],
    dtype: str | None,
    metadata: Callable[[Header], Mapping[str, str]],
    change: Change,
    dry_run: bool,
    overwrite: bool,
) -> int:
    """Write a model with changed tensors; everything else is copied.

    Args:
        checkpoint: The model.
        output: The file or folder, as the model is one.
        changed: Its files in which anything changes.
        dtype: The format's name of the dtype of all floats in these; None: as they are.
        metadata: The `__metadata__` of a changed file out of its header.
        change: Gives the new tensors.
        dry_run: Compute everything, write nothing.
        overwrite: Whether a model that is there may be replaced.

    Returns:
        The bytes of the changed files.

    Raises:
        StageError: The output cannot be written, or is in the way; nothing is left behind.
    """
    cast = Cast(dtype, checkpoint.tensors)
    if dry_run:
        with open(os.devnull, "wb") as nowhere:
            return sum(_write_file(file, nowhere, cast, metadata(file.header), change) for file in changed)
    try:
        with publish(output, overwrite=overwrite, folder=not checkpoint.single, holds=(INDEX,)) as partial:
            if not checkpoint.single:
                partial.mkdir()
                return _write_folder(checkpoint, partial, changed, cast, metadata, change)
            (file,) = changed
            with partial.open("wb") as stream:
                return _write_file(file, stream, cast, metadata(file.header), change)
    except OSError as error:
        raise cannot_write(error, output) from error


def stale(metadata: Mapping[str, str]) -> dict[str, str]:
    """A header's entries without those that are untrue of changed weights: hashes, dates, how they were made."""
    return {name: value for name, value in metadata.items() if not name.startswith(_STALE)}


def _write_folder(
    checkpoint: Checkpoint,
    folder: Path,
    changed: Sequence[WeightsFile],
    cast: Cast,
    metadata: Callable[[Header], Mapping[str, str]],
    change: Change,
) -> int:
    touched = {file.component for file in changed}
    components = {file.component for file in checkpoint.files} | set(checkpoint.pickled)
    index = json.loads((checkpoint.path / INDEX).read_text(encoding="utf-8"))
    components |= {name for name, entry in index.items() if isinstance(entry, list)}
    written = {file.path: file for file in changed}
    unused = {path for path in checkpoint.unused if path.parent.name in touched}
    size = 0
    for source in sorted(checkpoint.path.iterdir()):
        if source.is_file() and source.suffix not in _WEIGHTS and not source.name.startswith("."):
            shutil.copyfile(source, folder / source.name)
        elif source.is_dir() and source.name in components:
            for file in sorted(path for path in source.rglob("*") if path.is_file() and path not in unused):
                target = folder / file.relative_to(checkpoint.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                if file in written:
                    header = metadata(written[file].header)
                    with target.open("wb") as stream:
                        size += _write_file(written[file], stream, cast, header, change)
                elif source.name in touched and file.name.endswith(".index.json"):
                    _write_index(file, target, changed, cast)
                else:
                    shutil.copyfile(file, target)
                sync(target)
    return size


def _write_index(source: Path, target: Path, changed: Sequence[WeightsFile], cast: Cast) -> None:
    """The index of shards, with the bytes that they have now."""
    try:
        index = json.loads(source.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StageError(f"the index of the shards is damaged ({error})", where=str(source)) from error
    shards = [file for file in changed if file.path.parent == source.parent]
    if (
        cast.name
        and isinstance(index, dict)
        and isinstance(index.get("metadata"), dict)
        and "total_size" in index["metadata"]
    ):
        index["metadata"]["total_size"] = sum(
            _bytes(info, cast) for file in shards for info in file.header.tensors.values()
        )
    target.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(file: WeightsFile, stream: BinaryIO, cast: Cast, metadata: Mapping[str, str], change: Change) -> int:
    ordered = sorted(file.header.tensors.items(), key=lambda item: item[1].start)
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for name, info in ordered:
        stop = start + _bytes(info, cast)
        table[name] = {"dtype": cast.target(info.dtype), "shape": list(info.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, info in ordered:
        tensor = change(file, name, cast)
        if tensor is None and cast.target(info.dtype) != info.dtype:
            tensor = _converted(file, name, cast)
        if tensor is None:
            _copy(file, info, stream)
        else:
            stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return 8 + len(text) + start


def _converted(file: WeightsFile, name: str, cast: Cast) -> Tensor:
    """A tensor that is not changed, in the dtype that was asked for."""
    info = file.header.tensors[name]
    tensor = read_rows(file, name, slice(0, info.shape[0] if info.shape else 1))
    converted = tensor.to(cast.dtype(info.dtype))
    if torch.isfinite(tensor).all() and not torch.isfinite(converted).all():
        kind = str(converted.dtype).removeprefix("torch.")
        raise StageError(f"{name} has values that are too large for {kind}", where=str(file.path), hint="--dtype bf16")
    return converted


def _copy(file: WeightsFile, info: TensorInfo, stream: BinaryIO) -> None:
    with file.path.open("rb") as source:
        source.seek(file.header.size + info.start)
        remaining = info.stop - info.start
        while remaining:
            data = source.read(min(remaining, _BUFFER))
            if not data:
                raise StageError("cannot read the file (it became shorter while it was read)", where=str(file.path))
            stream.write(data)
            remaining -= len(data)


def _bytes(info: TensorInfo, cast: Cast) -> int:
    target = cast.target(info.dtype)
    if target == info.dtype:
        return info.stop - info.start
    return (info.stop - info.start) // DTYPES[info.dtype].itemsize * DTYPES[target].itemsize
