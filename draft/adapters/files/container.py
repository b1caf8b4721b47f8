"""The safetensors container: opened with suspicion, written whole or not at all, and always with the same bytes."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from draft.adapters.files.header import Header, TensorInfo, read_header, shown
from draft.errors import ResourceError, StageError, system_error
from draft.files import weights_file
from draft.outputs import publish

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()} | {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_tensors(path: Path, header: Header | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor and the metadata of a safetensors file, each byte once, into memory of their own.

    Args:
        path: The file, or a peft folder.
        header: Its header, where that has been read.

    Returns:
        Tensors by name, on the CPU, float8 as float16, which holds all its numbers; and the header's metadata.

    Raises:
        StageError: There is no such file, or it is not an intact safetensors file.
    """
    header, path = header or read_header(path), weights_file(path)
    _check_dtypes(header, path)
    tensors: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file:
            for name, info in sorted(header.tensors.items(), key=lambda item: item[1].start):
                file.seek(header.size + info.start)
                tensors[name] = _read(file, info)
    except (OSError, EOFError, MemoryError, RuntimeError) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise StageError(f"cannot read the file ({cause})", where=str(path)) from error
    return dict(sorted(tensors.items())), dict(header.metadata)


def map_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """Map every tensor of a safetensors file: its bytes are read when they are needed, and take no memory of their own.

    Args:
        path: The file, or a peft folder. Nobody may shorten it as long as one of the tensors is there.
        header: Its header.

    Returns:
        As `read_tensors`, from where they are read on a disk that maps no files.

    Raises:
        StageError: As from `read_tensors`.
    """
    file = weights_file(path)
    _check_dtypes(header, file)
    try:
        with file.open("rb") as stream:
            # Writable, which torch wants, but a page that is written to becomes this process' own.
            pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):
        return read_tensors(path, header)[0]
    return {name: _mapped(pages, header.size, info) for name, info in sorted(header.tensors.items())}


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
    plain = {name: tensors[name].detach().cpu() for name in sorted(tensors)}
    chunks = [raw_bytes(tensor) for tensor in plain.values()]
    write_bytes(path, [header_bytes(table_of(plain), metadata), *chunks])


def table_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Where tensors go in a file that is written, which their shapes and dtypes decide.

    Args:
        tensors: By name; those on the device `meta` will do.

    Returns:
        A header's tensors, sorted by name.
    """
    table: dict[str, TensorInfo] = {}
    start = 0
    for name, tensor in sorted(tensors.items()):
        stop = start + tensor.numel() * tensor.element_size()
        table[name] = TensorInfo(_NAMES[tensor.dtype], tuple(tensor.shape), start, stop)
        start = stop
    return table


def header_bytes(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """A file's first bytes, all of them before the data.

    Args:
        tensors: By name, in the order in which they are to be listed.
        metadata: The header's `__metadata__`, strings only.

    Returns:
        The length of the header and its text, padded to 8 bytes.
    """
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    for name, info in tensors.items():
        table[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [info.start, info.stop]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes as they are in a file: a view, no copy, if it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def copy_tensors(source: Path, target: Path, *, metadata: Mapping[str, str]) -> None:
    """Copy a safetensors file with further header entries, its tensors' bytes, dtypes and order untouched, atomically.

    Args:
        source: The file, or a peft folder.
        target: Where to write; its folder is made if need be.
        metadata: Entries to add to the header's `__metadata__`; they win over the file's own.

    Raises:
        StageError: There is no such file, it is not a safetensors file, or the copy cannot be written.
    """
    header = read_header(source)
    head = header_bytes(header.tensors, {**header.metadata, **metadata})
    try:
        data = weights_file(source).read_bytes()[header.size :]
    except OSError as error:
        raise StageError(f"cannot read the file ({error.strerror or error})", where=str(source)) from error
    write_bytes(target, [head, data])


def write_bytes(path: Path, chunks: Sequence[bytes | memoryview]) -> None:
    """Write a file atomically.

    Args:
        path: Where to write; its folder is made if need be.
        chunks: The contents, in order.

    Raises:
        StageError: The file cannot be written; nothing is left behind.
    """
    try:
        with publish(path) as partial, partial.open("wb") as file:
            file.writelines(chunks)
    except OSError as error:
        raise cannot_write(error, path) from error


def cannot_write(error: OSError, path: Path) -> ResourceError:
    """The error for a file that the disk refuses.

    Args:
        error: What the system said.
        path: The file.

    Returns:
        The error, with what is needed.
    """
    what = f"cannot write the file ({error.strerror or error})"
    refused = system_error(error, path)
    return ResourceError(what, needs=refused.needs if refused else "a disk that takes it", where=str(path))


def _check_dtypes(header: Header, path: Path) -> None:
    for name, info in header.tensors.items():
        if info.dtype not in _DTYPES:
            raise StageError(
                f"tensor {shown(name)} has a dtype that no adapter has (got {info.dtype})", where=str(path)
            )


def _mapped(pages: mmap.mmap, start: int, info: TensorInfo) -> Tensor:
    dtype, count = _DTYPES[info.dtype], math.prod(info.shape)
    if not count:
        return torch.empty(info.shape, dtype=dtype)
    if (start + info.start) % dtype.itemsize:  # no type may begin there
        tensor = torch.frombuffer(bytearray(pages[start + info.start : start + info.stop]), dtype=dtype)
    else:
        tensor = torch.frombuffer(pages, dtype=dtype, count=count, offset=start + info.start)
    return _halved(tensor.reshape(info.shape), info)


def _halved(tensor: Tensor, info: TensorInfo) -> Tensor:
    """Float8 as float16, which holds all its numbers."""
    return tensor.half() if info.dtype.startswith("F8_") else tensor


def _read(file: BinaryIO, info: TensorInfo) -> Tensor:
    tensor = torch.empty(info.shape, dtype=_DTYPES[info.dtype])
    if tensor.numel():
        room = tensor.reshape(-1).view(torch.uint8).numpy().data
        if file.readinto(room) != len(room):  # type: ignore[attr-defined]
            raise EOFError("it became shorter while it was read")
    return _halved(tensor, info)
