"""No module needs another one that needs it, whether it imports it at once or only when a function is called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"draft": "draft", "draft_cli": "cli/draft_cli", "draft_rewards": "plugins/draft_rewards"}
PACKAGES |= {"draft_emoji": "plugins/draft_emoji"}


def sources() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *file.relative_to(ROOT / folder).with_suffix("").parts]
            if "template" not in parts and "recipe" not in parts:
                found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements, and whether a function's call makes them; what is for type checkers alone is none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, inside
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from imports(other, inside=inside)
        else:
            yield from imports(
                child, inside=inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            )


def graph(files: dict[str, Path], *, functions: bool) -> dict[str, set[str]]:
    """Module to the modules of ours that it imports."""
    edges: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for statement, inside in imports(ast.parse(file.read_bytes())):
            if inside and not functions:
                continue
            if isinstance(statement, ast.Import):
                wanted = [alias.name for alias in statement.names]
            else:
                base = statement.module or ""
                if statement.level:
                    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
                    base = ".".join([*package.split(".")[: len(package.split(".")) - statement.level + 1], base]).strip(
                        "."
                    )
                wanted = [
                    f"{base}.{alias.name}" if f"{base}.{alias.name}" in files else base for alias in statement.names
                ]
            edges[name] |= {each for each in wanted if each in files and each != name}
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in order:
            visit(name)
    return found


@pytest.mark.parametrize("functions", [False, True], ids=["at import", "in functions too"])
def test_no_modules_import_each_other(functions: bool) -> None:
    assert circles(graph(sources(), functions=functions)) == []


def test_a_circle_is_found_however_the_import_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from p import b\n")
    (tmp_path / "b.py").write_text("def f():\n    from .c import x\n")
    (tmp_path / "c.py").write_text("import p.a\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.b\n")
    files = {f"p.{name}": tmp_path / f"{name}.py" for name in "abc"}
    assert circles(graph(files, functions=False)) == []
    assert circles(graph(files, functions=True)) == [["p.a", "p.b", "p.c"]]
