"""Write docs/plugins.md from the index docs/plugins.csv: `python docs/make_plugins.py`."""

from __future__ import annotations

import csv
import re
from dataclasses import astuple, dataclass, fields
from pathlib import Path

INDEX = Path(__file__).with_name("plugins.csv")
PAGE = Path(__file__).with_name("plugins.md")
HEAD = """# Plugins

<!-- Generated from plugins.csv by `python docs/make_plugins.py`; a test fails if it is out of date. -->

Packages that add rewards, model families, named models or observers to Draft. They are their authors' work: Draft's
authors have not checked them, and a plugin runs with your permissions. Install one with pip, as its page describes;
then `draft plugins` shows its state, `draft rewards` lists its rewards, and a pipeline uses them by name.
"""
TAIL = """## Add yours

Add a line to [plugins.csv](plugins.csv) and run `python docs/make_plugins.py`. The lines are sorted by package.

| column | what it holds |
| --- | --- |
| `package` | the name of the distribution, as pip installs it |
| `offers` | the kind and the names, e.g. `reward palette` or `rewards warm, cool`; kinds are {kinds} |
| `what` | what it is for, one phrase |
| `licence` | an SPDX id |
| `url` | the repository or the project's page, https |

[Writing a reward](writing-a-reward.md) goes from an empty folder to a published package, and [hooks.md](hooks.md) has
what else a package can offer. If two packages use one name, a pipeline writes `distribution:name`; a built-in name is
always the built-in one. `DRAFT_DISABLE_PLUGINS=1` turns off all packages but Draft's own, `DRAFT_PLUGINS=a,b` all but
these.
"""
KINDS = ("reward", "model family", "model", "observer")
NAME = r"[\w./-]+"


@dataclass(frozen=True)
class Plugin:
    """One line of the index.

    Args:
        package: The distribution.
        offers: A kind, perhaps in the plural, and names.
        what: What it is for.
        licence: An SPDX id.
        url: Its page; a path, relative to this folder, for the examples of this repository.
    """

    package: str
    offers: str
    what: str
    licence: str
    url: str


def read(text: str) -> list[Plugin]:
    """Read and check the index.

    Args:
        text: CSV with a heading.

    Returns:
        The plugins in the order of the lines.

    Raises:
        ValueError: A line is wrong; the message gives its number and what it must be.
    """
    lines = list(csv.reader(text.splitlines(), strict=True))
    names = [field.name for field in fields(Plugin)]
    if not lines or lines[0] != names:
        raise ValueError(f"plugins.csv:1: the heading must be {','.join(names)}")
    plugins: list[Plugin] = []
    for number, cells in enumerate(lines[1:], 2):
        if problem := _problem(cells, plugins[-1] if plugins else None):
            raise ValueError(f"plugins.csv:{number}: {problem} (got {','.join(cells)!r})")
        plugins.append(Plugin(*cells))
    return plugins


def page(plugins: list[Plugin]) -> str:
    """The complete page."""
    rows = [f"| [{p.package}]({p.url}) | {p.offers} | {p.what} | {p.licence} |" for p in plugins]
    table = "\n".join(["| package | offers | what it is for | licence |", "| --- | --- | --- | --- |", *rows])
    kinds = ", ".join(f"`{kind}`" for kind in KINDS)
    return "\n\n".join([HEAD.strip(), table, TAIL.strip().replace("{kinds}", kinds)]) + "\n"


def _problem(cells: list[str], before: Plugin | None) -> str:
    if len(cells) != len(fields(Plugin)) or not all(cell.strip() == cell != "" for cell in cells):
        return f"there must be {len(fields(Plugin))} cells without spaces around them, none of them empty"
    plugin = Plugin(*cells)
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", plugin.package):
        return "the package's name must be in its normal form: lower-case letters and digits, '-' between them"
    if before is not None and before.package >= plugin.package:
        return f"packages must be sorted, each once (after {before.package!r})"
    if not re.fullmatch(rf"({'|'.join(KINDS)}|model families)s? {NAME}(, {NAME})*", plugin.offers):
        return f"what it offers must be a kind and names; kinds are {', '.join(KINDS)}"
    if not re.fullmatch(r"[\w.+-]+( (AND|OR|WITH) [\w.+-]+)*", plugin.licence):
        return "the licence must be an SPDX id"
    if not re.fullmatch(r"https://[^\s()<>|]+|\.\./plugins/\w+", plugin.url):
        return "the address must begin with https://"
    if any(mark in cell for cell in astuple(plugin) for mark in "|<>`[]\n"):
        return "a cell must be plain text: no |, <, >, `, [ or ]"
    return ""


if __name__ == "__main__":
    PAGE.write_text(page(read(INDEX.read_text(encoding="utf-8"))), encoding="utf-8")
