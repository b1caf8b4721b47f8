"""Digests of what a stage is made of: the source of its rewards, and the weights of its models."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path


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


def _reached(module: Path) -> list[Path]:
    reached, waiting = {module}, [module]
    while waiting:
        for file in _neighbours(waiting.pop()):
            if file not in reached:
                reached.add(file)
                waiting.append(file)
    return sorted(reached)


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
            package, _, submodule = name.partition(".")
            if package == folder.name and submodule and (file := folder / f"{submodule.split('.')[0]}.py").is_file():
                yield file
