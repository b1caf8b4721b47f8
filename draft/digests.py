"""Digests of files that are asked for again and again: a large one is read once while it is not touched. No torch."""

from __future__ import annotations

import ast
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

from draft.files import cache_folder, sha256

_INDEX = "digests.sqlite"
_LARGE = 4 * 2**20
_FRESH = 2 * 10**9
"""Nanoseconds within which a file may change twice at one time stamp, so that its state is not believed yet."""


def remembered_sha256(path: Path) -> str:
    """The sha256 of a file; that of a large one comes from Draft's cache while its size and times are the same.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    state = path.stat()
    if state.st_size < _LARGE or _is_fresh(state):
        return sha256(path)
    key = (os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if known := _recall(key):
        return known
    digest = sha256(path)
    _remember(key, digest)
    return digest


def code_digest(path: Path) -> str:
    """The sha256 of what a Python file does: without comments, docstrings and layout; the same for every Python.

    Args:
        path: The file; one that is no Python source counts by its bytes.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    state = path.stat()
    if _is_fresh(state):
        return _code_digest.__wrapped__(path, 0, 0, 0)
    return _code_digest(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@cache
def _code_digest(path: Path, size: int, modified: int, changed: int) -> str:
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    for part in _parts(tree):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _parts(tree: ast.AST) -> Iterator[str]:
    """A syntax tree as text, without what versions of Python write differently: fields with nothing in them."""
    waiting: list[object] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, tuple):  # a mark of ours: no constant of a syntax tree is one
            yield item[0]
        elif not isinstance(item, ast.AST):
            yield f"={item!r}"
        else:
            yield f"({type(item).__name__}"
            waiting.append((")",))
            for name in reversed(item._fields):
                value = getattr(item, name, None)
                if name == "body" and _has_docstring(item):
                    value = value[1:]
                if isinstance(item, ast.JoinedStr):  # Python 3.12 puts empty texts between its parts
                    value = [part for part in item.values if not _is_empty_text(part)]
                nothing = value == [] or (value is None and not isinstance(item, ast.Constant))
                if not nothing and name not in ("kind", "type_comment"):
                    waiting += [*(reversed(value) if isinstance(value, list) else [value]), (f".{name}",)]


def _is_fresh(state: os.stat_result) -> bool:
    return time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < _FRESH


def _recall(key: tuple[str, int, int, int]) -> str:
    """What the cache has of a file in this state; empty: nothing."""
    try:
        with _open() as index:
            row = index.execute("SELECT sha256, size, modified, changed FROM files WHERE path = ?", key[:1]).fetchone()
    except (OSError, sqlite3.Error):
        return ""
    return str(row[0]) if row is not None and row[1:] == key[1:] else ""


def _remember(key: tuple[str, int, int, int], digest: str) -> None:
    try:
        with _open() as index, index:
            index.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*key, digest))
    except (OSError, sqlite3.Error):
        return  # a cache that cannot be written to: the file is read again next time


def _open() -> closing[sqlite3.Connection]:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    index = sqlite3.connect(folder / _INDEX, timeout=5)
    index.execute(
        "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, "
        "changed INTEGER, sha256 TEXT)"
    )
    return closing(index)


def _is_empty_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""


def _has_docstring(node: ast.AST) -> bool:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return False
    first = node.body[0]
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
