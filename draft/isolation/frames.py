"""The messages between Draft and a reward's process: a JSON header and raw bytes, never a pickle. No torch.

A message is the mark `DRFT`, the header's length (4 bytes) and the body's length (8 bytes), little-endian, then the
header as UTF-8 JSON and the body. Draft asks and the process answers, one message each; the process speaks first, once,
to say who it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from io import FileIO
from typing import Any

PROTOCOL = 1
"""Raised when either side would no longer understand the other."""

_MARK = b"DRFT"
_HEAD = struct.Struct("<4sIQ")


class Broken(Exception):
    """What arrived is no message."""


def send(stream: FileIO, header: Mapping[str, Any], body: bytes = b"") -> None:
    """Write one message.

    Args:
        stream: Where to, unbuffered.
        header: Plain values.
        body: Raw bytes that the header describes.
    """
    text = json.dumps(header).encode()
    for part in (_HEAD.pack(_MARK, len(text), len(body)) + text, body):
        view = memoryview(part)
        while view:
            view = view[stream.write(view) :]  # a pipe takes what it has room for


def receive(stream: FileIO) -> tuple[dict[str, Any], bytearray] | None:
    """Read one message.

    Args:
        stream: Where from, unbuffered.

    Returns:
        Its header and its body; None where the stream has ended.

    Raises:
        Broken: It is no message, or ends in the middle of one.
    """
    head = _exactly(stream, _HEAD.size)
    if not head:
        return None
    if len(head) < _HEAD.size or head[: len(_MARK)] != _MARK:
        raise Broken(f"expected a message (got {bytes(head[:40])!r})")
    _, length, size = _HEAD.unpack(head)
    text, body = _exactly(stream, length), _exactly(stream, size)
    if (len(text), len(body)) != (length, size):
        raise Broken("the message ended in the middle")
    return json.loads(text), body


def _exactly(stream: FileIO, size: int) -> bytearray:
    """`size` bytes, fewer only where the stream ends."""
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        count = stream.readinto(view[done:])
        if not count:
            break
        done += count
    view.release()
    del buffer[done:]
    return buffer
