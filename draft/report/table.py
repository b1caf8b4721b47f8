"""Tables of text that a page and a Markdown file share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        columns: The heads of its columns.
        rows: Its rows, each as long as `columns`; the first cell is a row's head.
        title: What it shows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


def as_markdown(table: Table, *, align: str = "---") -> str:
    """A table's rows as Markdown, without its title.

    Args:
        table: The table.
        align: The rule under every head but the first: ``"---"``, or ``"---:"`` for numbers.

    Returns:
        Lines without a line break at the end.
    """
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in [table.columns, *table.rows])
    rule = ["---", *[align] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
