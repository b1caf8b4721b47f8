"""The header of a safetensors file: what it says is in it, believed only where it adds up."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from draft.errors import StageError
from draft.files import WEIGHTS, weights_file
from draft.writing import kind_of

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits of one value by the format's name of its dtype."""

_LARGEST = 16 * 2**20
_PICKLE = "pickle files are never opened, loading one can run code; convert it to safetensors with a tool you trust"
_AGAIN = "download or copy it again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it.

    Args:
        dtype: The format's name: `F32`, `BF16`, ...
        shape: Its shape.
        start: Its first byte, counted from the end of the header.
        stop: The byte after its last.
        name: What it is called.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    name: str = ""

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)


@dataclass(frozen=True)
class Header:
    """A safetensors header that adds up.

    Args:
        tensors: By name, in the order of the file's header; together they cover the data without gap or overlap.
        metadata: `__metadata__`, strings only.
        size: Bytes before the data: the length field and the JSON text.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    size: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; no tensor is read, and torch is not imported.

    Args:
        path: The file, or a peft folder.

    Returns:
        Its header: every dtype is known, every tensor's bytes are as many as its dtype and shape need, and together
        they are the file's data, each byte once.

    Raises:
        StageError: There is no such file, it is no regular file, or it is not an intact safetensors file.

    Example:
        >>> read_header(Path("pony.safetensors")).metadata["ss_network_dim"]  # doctest: +SKIP
        '16'
    """
    if os.path.isdir(path) and not weights_file(path).exists():
        hint = "give a .safetensors file or a peft adapter folder"
        raise StageError(f"the folder holds no {WEIGHTS}", where=str(path), hint=hint)
    path = weights_file(path)
    size = _regular_size(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
            length = _check_head(head, size, path)
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise StageError(f"cannot read the file ({error.strerror or error})", where=str(path)) from error
    try:
        header = _parsed(text, size - 8 - length)
        _accept(path)
    except (ValueError, RecursionError, SafetensorError) as error:
        cause = "its header is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise StageError(f"not an intact safetensors file ({cause})", where=str(path), hint=_AGAIN) from error
    return header


def shown(name: str) -> str:
    """A name from a file as a message may show it: quoted, and cut where it is long."""
    return repr(name if len(name) <= 120 else f"{name[:100]}...{name[-15:]}")


def _regular_size(path: Path) -> int:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise StageError("no such adapter file", where=str(path)) from error
    except OSError as error:
        raise StageError(f"cannot read the file ({error.strerror or error})", where=str(path)) from error
    # Opening a pipe would wait for its other end, and a device has no end.
    if (kind := kind_of(path)) != "a file":
        kind = "a pipe or device" if kind in ("a pipe", "a device") else kind
        raise StageError(f"{kind}, not a safetensors file", where=str(path))
    return status.st_size


def _check_head(head: bytes, size: int, path: Path) -> int:
    """Say in words what is wrong with a file before a parser meets it; give the length of the JSON text."""
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and head[8:9] != b"{":
        raise StageError("a pickle checkpoint, not safetensors", where=str(path), hint=_PICKLE)
    if head.startswith(b"version https://git-lfs"):
        raise StageError(
            "a Git LFS pointer, not the file itself", where=str(path), hint="run `git lfs pull` where it came from"
        )
    if size == 0:
        raise StageError("the file is empty", where=str(path))
    length = int.from_bytes(head[:8], "little")
    if size < 9 or head[8:9] != b"{" or length >= 2**40:
        raise StageError("not a safetensors file", where=str(path))
    if 8 + length > size:
        raise StageError(
            f"the file is truncated: its header says {length} bytes, {size - 8} are there",
            where=str(path),
            hint=_AGAIN,
        )
    if length > _LARGEST:
        raise StageError(
            f"its header is {length} bytes long, more than any adapter's (at most {_LARGEST})", where=str(path)
        )
    return length


def _parsed(text: bytes, data: int) -> Header:
    """The header out of its JSON text, checked against the number of bytes of data behind it."""
    table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    if not isinstance(table, dict):
        raise ValueError("its header is no table")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is no table of strings")
    tensors = {name: _info(name, entry) for name, entry in table.items()}
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != position:
            raise ValueError(f"the bytes of {shown(name)} begin at {info.start}, those before it end at {position}")
        position = info.stop
    if position != data:
        raise ValueError(f"its tensors need {position} bytes, {data} are there")
    return Header(tensors, metadata, 8 + len(text))


def _accept(path: Path) -> None:
    """Refuse what the library refuses, such as names that are no Unicode: no other program could open the file."""
    with suppress(OSError), safe_open(path, framework="np"):  # the library maps the file, which not every disk allows
        pass


def _info(name: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {shown(name)} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"the dtype of {shown(name)} is unknown (got {shown(str(dtype))})")
    if not _counts(shape) or len(shape) > 8:
        raise ValueError(f"the shape of {shown(name)} is not at most 8 whole numbers from 0")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the data_offsets of {shown(name)} are not two rising whole numbers from 0")
    if math.prod(max(1, length) for length in shape) >= 2**60:
        raise ValueError(f"the shape of {shown(name)} is beyond any memory")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise ValueError(
            f"{shown(name)} has {offsets[1] - offsets[0]} bytes, its shape {tuple(shape)} in {dtype} needs {bits // 8}"
        )
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1], name)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**60 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"its header names {shown(name)} twice")
    return table


def _no_number(text: str) -> Any:
    raise ValueError(f"its header holds {text}, which is no JSON")
