"""Digests of what a stage is made of: the source of its rewards, and the weights of its models."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

_WHOLE = 16 * 2**20
_BLOCKS = 64
_BLOCK = 64 * 2**10


def source_digest(module: Path) -> str:
    """The sha256 of a module's source and of those of its own folder that it imports, directly or not.

    Nothing is imported: the import statements are read. Other packages count by their behaviour only.

    Args:
        module: The module's file.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in _reached(module):
        digest.update(f"{file.name}\0".encode())
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def weights_digest(path: Path) -> str:
    """A digest of a model's files that costs no more than a moment, however large they are.

    Names and sizes do not tell a retrained model from the old one. Files up to 16 MB are read whole, of a larger one
    64 blocks of 64 kB, spread evenly: a training changes nearly every weight.

    Args:
        path: A folder or a file; the folder of a file's name beside it, which may overrule parts of it, counts too.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    folder = path if path.is_dir() else path.with_suffix("")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files if path.is_dir() else [path, *files]:
        size = file.stat().st_size
        name = "" if file == path else file.relative_to(folder).as_posix()
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE:
                digest.update(stream.read())
                continue
            for index in range(_BLOCKS):
                stream.seek((size - _BLOCK) * index // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def _reached(module: Path) -> list[Path]:
    found, waiting = {module}, [module]
    while waiting:
        for file in _neighbours(waiting.pop()):
            if file not in found:
                found.add(file)
                waiting.append(file)
    return sorted(found)


def _neighbours(module: Path) -> Iterator[Path]:
    folder = module.parent
    try:
        tree = ast.parse(module.read_bytes())
    except (SyntaxError, ValueError):  # not Python source; its bytes are in the digest all the same
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level <= 1:
            base = node.module or ""
            prefix = f"{folder.name}.{base}".rstrip(".") if node.level == 1 else base
            names = [prefix, *(f"{prefix}.{alias.name}" for alias in node.names)]
        for name in names:
            package, _, rest = name.partition(".")
            if package == folder.name and rest and (file := folder / f"{rest.split('.')[0]}.py").is_file():
                yield file
