"""The catalogue of plugins is what its index says, and a line that would spoil it is refused with its number."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
GOOD = "package,offers,what,licence,url\na-b,reward tint,colours,MIT,https://example.org/a\n"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_plugins", ROOT / "docs" / "make_plugins.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_plugins"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def test_the_page_of_plugins_is_current(generator: ModuleType) -> None:
    plugins = generator.read(generator.INDEX.read_text(encoding="utf-8"))
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(plugins), "run `python docs/make_plugins.py`"


def test_the_examples_of_the_repository_are_in_the_index_as_they_are(generator: ModuleType) -> None:
    for plugin in generator.read(generator.INDEX.read_text(encoding="utf-8")):
        if plugin.url.startswith("../"):
            file = ROOT / "docs" / plugin.url / "pyproject.toml"
            project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
            assert project["name"] == plugin.package
            points = {name for group in project["entry-points"].values() for name in group}
            assert plugin.offers.split()[-1] in points


def test_a_line_may_be_added_by_anybody(generator: ModuleType) -> None:
    text = GOOD + '"a-c","rewards warm, cool","two words, one comma",Apache-2.0 OR MIT,https://example.org/c\n'
    first, second = generator.read(text)
    assert (first.package, second.offers) == ("a-b", "rewards warm, cool")
    assert "| [a-c](https://example.org/c) | rewards warm, cool | two words, one comma |" in generator.page([second])


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a-c,reward x,y,MIT", "there must be 5 cells"),
        ("a-c,reward x,,MIT,https://example.org", "none of them empty"),
        ("A_C,reward x,y,MIT,https://example.org", "in its normal form"),
        ("a-a,reward x,y,MIT,https://example.org", "packages must be sorted, each once (after 'a-b')"),
        ("a-b,reward x,y,MIT,https://example.org", "packages must be sorted, each once"),
        ("a-c,theme x,y,MIT,https://example.org", "must be a kind and names; kinds are reward, model family"),
        ("a-c,reward x,y,see website,https://example.org", "an SPDX id"),
        ("a-c,reward x,y,MIT,http://example.org", "begin with https://"),
        ("a-c,reward x,y | z,MIT,https://example.org", "plain text"),
        ("a-c,reward x,<b>y</b>,MIT,https://example.org", "plain text"),
    ],
)
def test_a_line_that_is_wrong_is_refused_with_its_number(generator: ModuleType, line: str, what: str) -> None:
    with pytest.raises(ValueError, match=r"^plugins\.csv:3: ") as raised:
        generator.read(GOOD + line + "\n")
    assert what in str(raised.value)
    with pytest.raises(ValueError, match="the heading must be package,offers,what,licence,url"):
        generator.read(line)
