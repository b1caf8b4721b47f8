"""`draft diff A B`: how alike two adapters are, and what adding them does."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draft.files import usable
from draft_cli.console import rows

if TYPE_CHECKING:
    from draft.adapters.difference import Difference, Relation

_SHOWN = 10


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="An adapter.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one of the same family.")],
    all: Annotated[bool, typer.Option("--all", help=f"List every module, not the {_SHOWN} worst.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Compare two adapters module by module: cosine, shared subspaces, sizes, and how they interfere when mixed."""
    from draft.adapters.difference import compare_adapters
    from draft.adapters.files.formats import read_adapter

    paths = (usable(first), usable(second))
    difference = compare_adapters(*(read_adapter(path) for path in paths))
    print(json_module.dumps(_as_json(difference, paths), indent=2) if json else _text(difference, paths, all=all))


def _text(difference: Difference, paths: tuple[Path, Path], *, all: bool) -> str:
    total, only = difference.total, [len(names) for names in difference.only]
    facts = [
        ("a", f"{paths[0]}  ||a|| = {total.norms[0]:.4g}"),
        ("b", f"{paths[1]}  ||b|| = {total.norms[1]:.4g}"),
        ("modules", f"{len(difference.modules)} in both, {only[0]} only in a, {only[1]} only in b"),
        ("cosine", f"{total.cosine:+.3f}"),
        ("interference", f"{total.interference:.3f}  {_reading(total)}"),
    ]
    lines = [rows(facts)]
    shown = list(difference.modules.items())[: None if all else _SHOWN]
    if shown:
        width = max(len(name) for name, _ in shown)
        lines.append(f"  {'':<{width}}  interference  cosine  columns  rows   ||a||     ||b||")
        lines += [f"  {name:<{width}}  {_cells(relation)}" for name, relation in shown]
        if len(shown) < len(difference.modules):
            lines.append(f"  {len(difference.modules) - len(shown)} more, which interfere less (--all)")
    return "\n".join(lines)


def _cells(relation: Relation) -> str:
    return (
        f"{relation.interference:>12.3f}  {relation.cosine:>+6.3f}  {relation.columns or 0.0:>7.3f}"
        f"  {relation.rows or 0.0:>5.3f}  {relation.norms[0]:<8.3g}  {relation.norms[1]:<8.3g}"
    ).rstrip()


def _reading(relation: Relation) -> str:
    """What the number predicts of `draft mix a b`."""
    value = relation.interference
    if 0.0 in relation.norms:
        return "one of them changes nothing"
    if value > 1.05:
        return "they pull the same way: mixed at full weights the change is larger than two unrelated ones; use less"
    if value < 0.95:
        return "they pull against each other: mixed, each takes some of the other away"
    return "they leave each other alone: mixed, each keeps its effect"


def _as_json(difference: Difference, paths: tuple[Path, Path]) -> dict[str, Any]:
    def figures(relation: Relation) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "norms": list(relation.norms),
            "cosine": relation.cosine,
            "interference": relation.interference,
        }
        if relation.chance is not None:
            entry |= {"columns": relation.columns, "rows": relation.rows, "chance": list(relation.chance)}
        return entry

    return {
        "paths": [str(path) for path in paths],
        "total": figures(difference.total),
        "only": [list(names) for names in difference.only],
        "modules": {name: figures(relation) for name, relation in difference.modules.items()},
    }
