"""The page of a comparison."""

from __future__ import annotations

from pathlib import Path

from draft.comparison.results import Comparison
from draft.comparison.table import note, search_table, tables
from draft.report.page import png_uri, render


def write_page(comparison: Comparison, plot: Path, path: Path, *, config_text: str) -> None:
    """Write the page.

    Args:
        comparison: The comparison.
        plot: The PNG with the curves.
        path: Where the page goes.
        config_text: The pipeline's configuration, shown as text.
    """
    budget = comparison.settings.budget
    reward, costs, *measured = tables(comparison)
    searched = search_table(comparison)
    text = render(
        "comparison/page.html.j2",
        mark="comparison",
        title=comparison.title or "Comparison",
        columns=2,
        facts=[
            ("model", comparison.model),
            ("methods", str(len(comparison.methods))),
            ("seeds", ", ".join(map(str, comparison.settings.seeds))),
            ("budget", f"{budget.updates} updates, {budget.evaluations} images scored, {budget.seconds:g} s"),
        ],
        note=note(comparison).replace("`", ""),
        plot=png_uri(plot),
        results=[reward, costs],
        rest=[*measured, *([searched] if searched else [])],
        config=config_text,
    )
    path.write_text(text, encoding="utf-8")
