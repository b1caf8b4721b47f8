"""The tables of figures in the pages are what runs recorded, with the settings that were run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "docs" / "figures").glob("*.json"))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "docs" / "make_figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_tables_of_figures_are_those_of_their_records() -> None:
    made = make()
    names = {path.name for path in made.pages()}
    assert {"methods.md", "comparison.md"} <= names
    for path in made.pages():
        text = path.read_text(encoding="utf-8")
        assert text == made.page(text), f"{path.name}: run `python docs/make_figures.py`"


def test_a_changed_figure_or_setting_changes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, record = make(), read(ROOT / "docs" / "figures" / "probe_guidance_1.json")
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for path in RECORDS:
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(made, "FIGURES", tmp_path)
    assert made.page(text) == text
    record["settings"]["sampler"]["guidance_scale"] = 2.5
    record["figures"]["k"][0]["norm"] = 0.4321
    (tmp_path / "probe_guidance_1.json").write_text(json.dumps(record), encoding="utf-8")
    changed = made.page(text)
    assert "`sampler.guidance_scale: 2.5`" in changed and "| 1 | 0.4321 |" in changed


def test_every_record_is_shown_with_its_settings() -> None:
    shown = {block[:2] for path in make().pages() for block in make().BLOCK.findall(path.read_text(encoding="utf-8"))}
    assert {name for name, _ in shown} == {path.stem for path in RECORDS}
    assert {name for name, view in shown if view == "settings"} == {path.stem for path in RECORDS}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_its_settings_and_what_the_rehearsal_replaced_and_no_path(path: Path) -> None:
    record = read(path)
    assert record["kind"] == record["settings"]["kind"] and record["settings"]["sampler"]["num_inference_steps"] == 10
    assert ("stages." in "".join(record["rehearsal"])) == record["pipeline"].endswith("-rehearsal")
    assert not re.search(r'"/|[A-Za-z]:\\\\', path.read_text(encoding="utf-8"))


def test_what_is_kept_of_a_stage_is_what_it_recorded(tmp_path: Path) -> None:
    """A run's folder, as `draft run probe --rehearse` leaves it."""
    config = (
        "probe:\n  kind: probe\n  prompts: {file: /home/me/prompts/a.csv}\n  sampler: {guidance_scale: 2.0}\nseed: 4\n"
        "rehearsal:\n  stages.probe.sampler.guidance_scale: {before: 7.5, after: 2.0}\n"
    )
    results = {"title": "probe-rehearsal", "k": [], "versions": {"torch": "2"}, "config": config}
    stage = {"stage": "probe", "identity": {"kind": "probe"}, "finished": "2026-11-29T10:00:00+00:00", "seconds": 3}
    (tmp_path / "probe.json").write_text(json.dumps(results))
    (tmp_path / "stage.json").write_text(json.dumps(stage))
    kept = make().keep(tmp_path)
    assert kept["settings"] == {"kind": "probe", "prompts": {"file": "a.csv"}, "sampler": {"guidance_scale": 2.0}}
    assert kept["rehearsal"] == {"stages.probe.sampler.guidance_scale": {"before": 7.5, "after": 2.0}}
    assert (kept["date"], kept["seed"], kept["figures"]) == ("2026-11-29", 4, {"k": []})
    (tmp_path / "probe.json").write_text(json.dumps({**results, "config": config.partition("rehearsal:")[0]}))
    with pytest.raises(SystemExit, match="before results held what a rehearsal replaces"):
        make().keep(tmp_path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(path: Path) -> None:
    width, fenced = 0, False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fenced ^= line.startswith("```")
        if fenced or not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        width = width or cells
        assert cells == width, f"{path.name}:{number}: {line[:80]}"
