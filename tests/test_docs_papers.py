"""The list of papers has every paper that the code and the docs cite, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("draft", "plugins", "cli", "pipelines", "docs")
NUMBER = re.compile(r"\b\d{4}\.\d{5}\b")
CITATION = re.compile(r"arXiv:? ?(\d{4}\.\d{5})")


def test_every_cited_paper_is_in_the_list_and_no_other() -> None:
    listed = ROOT / "docs" / "papers.md"
    files = [path for kind in ("*.py", "*.md", "*.yaml") for top in SOURCES for path in (ROOT / top).rglob(kind)]
    cited = {found for path in files if path != listed for found in CITATION.findall(path.read_text(encoding="utf-8"))}
    assert cited == set(NUMBER.findall(listed.read_text(encoding="utf-8")))
