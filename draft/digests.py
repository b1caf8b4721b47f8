"""Digests of files that are asked for again and again: a large one is read once while it is not touched. No torch."""

from __future__ import annotations

import ast
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from draft.files import cache_folder, sha256

T = TypeVar("T")
_INDEX = "digests.sqlite"
_CREATE = (
    "CREATE TABLE IF NOT EXISTS files "
    "(path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER, sha256 TEXT)"
)
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
    where = "path = ? AND size = ? AND modified = ? AND changed = ?"
    if known := _table(f"SELECT sha256 FROM files WHERE {where}", key):
        return str(known[0][0])
    digest = sha256(path)
    _table("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*key, digest))
    return digest


def while_untouched(make: Callable[[Path], T]) -> Callable[[Path], T]:
    """Remember in this process what a function makes of a file, as long as the file's size and times are the same.

    Args:
        make: The function of a file.

    Returns:
        The same function, which reads an untouched file once.
    """
    known: dict[tuple[Path, int, int, int], T] = {}

    @wraps(make)
    def remembered(path: Path) -> T:
        state = path.stat()
        if _is_fresh(state):
            return make(path)
        key = (path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if key not in known:
            known[key] = make(path)
        return known[key]

    return remembered


@while_untouched
def code_digest(path: Path) -> str:
    """The sha256 of what a Python file does: without comments, docstrings and layout; the same for every Python.

    Args:
        path: The file; one that is no Python source counts by its bytes.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
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
                value: Any = getattr(item, name, None)
                if name == "body" and _has_docstring(item):
                    value = value[1:]
                if isinstance(item, ast.JoinedStr):  # Python 3.12 puts empty texts between its parts
                    value = [part for part in item.values if not _is_empty_text(part)]
                nothing = value == [] or (value is None and not isinstance(item, ast.Constant))
                if not nothing and name not in ("kind", "type_comment"):
                    waiting += [*(reversed(value) if isinstance(value, list) else [value]), (f".{name}",)]


def _is_fresh(state: os.stat_result) -> bool:
    return time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < _FRESH


def _table(query: str, values: tuple[str | int, ...]) -> list[tuple[Any, ...]]:
    """Ask the cache's table of large files; where it cannot be used it holds nothing, and files are read again."""
    # Here, as not every Python has it, and the process of an isolated reward reads no large files.
    import sqlite3

    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(folder / _INDEX, timeout=5)) as index, index:
            index.execute(_CREATE)
            return index.execute(query, values).fetchall()
    except (OSError, sqlite3.Error):
        return []


def _is_empty_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""


def _has_docstring(node: ast.AST) -> bool:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return False
    first = node.body[0]
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
