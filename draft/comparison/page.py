"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from draft.comparison.results import Comparison
from draft.comparison.table import note, search_table, tables
from draft.evaluation.page import soft_breaks
from draft.evaluation.results import versions


def write_page(comparison: Comparison, plot: Path, path: Path, *, config_text: str) -> None:
    """Write the page.

    Args:
        comparison: What was found.
        plot: The PNG with the curves.
        path: Where the page goes.
        config_text: The pipeline's configuration, shown as text.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("draft.comparison", "."), PackageLoader("draft.evaluation", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["soft"] = soft_breaks
    budget = comparison.settings.budget
    reward, costs, *rest = tables(comparison)
    searched = search_table(comparison)
    text = environment.get_template("page.html.j2").render(
        title=comparison.title or "Comparison",
        columns=2,
        facts=[
            ("model", comparison.model),
            ("methods", str(len(comparison.entrants))),
            ("seeds", ", ".join(map(str, comparison.settings.seeds))),
            ("budget", f"{budget.updates} updates, {budget.evaluations} images scored, {budget.seconds:g} s"),
        ],
        note=note(comparison).replace("`", ""),
        plot="data:image/png;base64," + base64.b64encode(plot.read_bytes()).decode(),
        results=[reward, costs],
        rest=[*rest, *([searched] if searched else [])],
        config=config_text,
        versions=versions(),
    )
    path.write_text(text, encoding="utf-8")
