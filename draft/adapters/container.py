"""The safetensors container: opened with suspicion, written whole or not at all, and always with the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from draft.errors import StageError

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_LARGEST_HEADER = 100_000_000
_PICKLE = "pickle files are never opened, loading one can run code; convert it to safetensors with a tool you trust"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor and the metadata of a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU, and the header's metadata.

    Raises:
        StageError: There is no such file, or it is not an intact safetensors file.
    """
    _inspect(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, metadata
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        cause = " ".join(str(error).split())
        raise StageError(f"not an intact safetensors file ({cause})", where=str(path)) from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: `path` holds either what it held before or the whole new file.

    The same tensors and metadata always give the same bytes. (The safetensors library keeps metadata in a hash map
    whose order changes from one process to the next, so the header is written here.)

    Args:
        tensors: Floating-point tensors by name; names may come in any order.
        path: Where to write; its folder is made if need be.
        metadata: The header's `__metadata__`, strings only.

    Raises:
        StageError: The file cannot be written; nothing is left behind.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    chunks: list[bytes] = []
    start = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(data)],
        }
        start += len(data)
        chunks.append(data)
    write_bytes(path, [_header(header), *chunks])


def copy_tensors(source: Path, target: Path, *, metadata: Mapping[str, str]) -> None:
    """Copy a safetensors file with further header entries, its tensors' bytes, dtypes and order untouched, atomically.

    Args:
        source: The file.
        target: Where to write; its folder is made if need be.
        metadata: Entries to add to the header's `__metadata__`; they win over the file's own.

    Raises:
        StageError: There is no such file, it is not a safetensors file, or the copy cannot be written.
    """
    _inspect(source)
    data = source.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        own = {**header.pop("__metadata__", {}), **metadata}
    except (ValueError, TypeError, AttributeError) as error:
        raise StageError(f"not an intact safetensors file ({error})", where=str(source)) from error
    write_bytes(target, [_header({"__metadata__": dict(sorted(own.items())), **header}), data[start:]])


def write_bytes(path: Path, chunks: list[bytes]) -> None:
    """Write a file atomically: into a temporary neighbour, synced to the disk, then renamed.

    Args:
        path: Where to write; its folder is made if need be.
        chunks: The contents, in order.

    Raises:
        StageError: The file cannot be written; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StageError(f"cannot write the file ({error.strerror or error})", where=str(path)) from error


def _header(header: Mapping[str, object]) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _inspect(path: Path) -> None:
    """Say in words what is wrong with a file before a parser meets it."""
    if not path.exists():
        raise StageError("no such adapter file", where=str(path))
    if path.is_dir():
        raise StageError("a folder, not a safetensors file", where=str(path))
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise StageError(f"cannot read the file ({error.strerror or error})", where=str(path)) from error
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and b"{" not in head[8:9]:
        raise StageError("a pickle checkpoint, not safetensors", where=str(path), hint=_PICKLE)
    if head.startswith(b"version https://git-lfs"):
        raise StageError(
            "a Git LFS pointer, not the file itself", where=str(path), hint="run `git lfs pull` where it came from"
        )
    if size == 0:
        raise StageError("the file is empty", where=str(path))
    length = int.from_bytes(head[:8], "little")
    if size < 9 or head[8:9] != b"{" or length > _LARGEST_HEADER:
        raise StageError("not a safetensors file", where=str(path))
    if 8 + length > size:
        raise StageError(
            f"the file is truncated: its header says {length} bytes, {size - 8} are there",
            where=str(path),
            hint="download or copy it again",
        )
