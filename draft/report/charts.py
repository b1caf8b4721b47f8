"""Charts: as SVG text that takes its colours and its font from the page it is on, or on white paper."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

# matplotlib needs colours that are known now, the page has a light and a dark set: these are replaced by the page's.
INK, FAINT, LINE = "#010203", "#040506", "#070809"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", LINE: "var(--line)"}
SERIES = tuple(f"#0a0b{index:02x}" for index in range(12, 18))
_VARIABLES |= {colour: f"var(--s{index + 1})" for index, colour in enumerate(SERIES)}


@dataclass(frozen=True)
class Colours:
    """The colours of a chart.

    Args:
        ink: Titles.
        faint: Labels.
        line: Grid lines.
        series: The curves.
    """

    ink: str
    faint: str
    line: str
    series: Sequence[str]


PAGE = Colours(INK, FAINT, LINE, SERIES)
"""Those that the page replaces by its own."""
PAPER = Colours("#1b1d22", "#6a6f7a", "#e3e1dc", ("#3a5bd9", "#d9822b", "#1f9d78", "#b0459c", "#8a6d1f", "#2a8fb8"))
"""Those of a picture on white."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def style(salt: str) -> dict[Any, Any]:
    """Settings of matplotlib for one chart.

    Args:
        salt: A text that differs from chart to chart of a page: it makes the names inside an SVG the same every time,
            and distinct from those of the page's other charts.

    Returns:
        For `rc_context`.
    """
    return {**_STYLE, "svg.hashsalt": salt}


def paper_style() -> dict[Any, Any]:
    """Settings of matplotlib for a chart in a picture on white, for `rc_context`."""
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.0,
        "axes.titlelocation": "left",
        "axes.titlecolor": PAPER.ink,
        "axes.edgecolor": PAPER.line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": PAPER.line,
        "ytick.color": PAPER.line,
        "xtick.labelcolor": PAPER.faint,
        "ytick.labelcolor": PAPER.faint,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
    }


def short(text: str, length: int = 22) -> str:
    """A label of a chart, shortened, its dollar signs no start of matplotlib's mathematics."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")


def svg_text(figure: Figure, description: str) -> str:
    """A figure as SVG text.

    Args:
        figure: Drawn in `INK`, `FAINT`, `LINE` and `SERIES`.
        description: What it shows, for readers who cannot see it.

    Returns:
        The text, with the page's colours.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = text.replace("font: 10px 'sans-serif'", "font: 10px inherit")
    description = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
