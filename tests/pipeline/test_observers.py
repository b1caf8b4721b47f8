"""Plugins that watch a run hear of what runs, and cannot stop it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from draft.errors import DraftWarning
from draft.pipeline import run as run_module


def test_observers_hear_of_stages_that_run_and_never_of_reused_ones(workshop, monkeypatch) -> None:
    heard = []

    class Hooks:
        def __init__(self, reporter) -> None:
            heard.append("loaded")

        def started(self, stage, folder) -> None:
            heard.append(f"{stage} started in {folder.name}")

        def finished(self, stage, outputs, metrics) -> None:
            heard.append(f"{stage} finished with {sorted(outputs)} {metrics}")

    monkeypatch.setattr(run_module, "Observers", Hooks)
    workshop.run(only="train")
    assert heard == [
        "loaded",
        "train started in train.partial",
        "train finished with ['adapter', 'metrics'] {'figure': 1.5}",
    ]
    heard.clear()
    workshop.run(only="train")
    assert heard == []


@pytest.mark.parametrize(
    ("raised", "told"), [("ValueError(stage)", "ValueError: train"), ("SystemExit(0)", "SystemExit: 0")]
)
def test_an_observer_that_fails_is_told_and_the_run_goes_on(workshop, tmp_path, monkeypatch, raised, told) -> None:
    info = tmp_path / "site" / "watcher-3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: watcher\nVersion: 3\n")
    (info / "entry_points.txt").write_text("[draft.extensions]\nwatch = watcher_plugin\n")
    (tmp_path / "site" / "watcher_plugin.py").write_text(
        f"import draft\n\n@draft.hookimpl\ndef draft_stage_finished(stage, metrics):\n    raise {raised}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "watcher_plugin", raising=False)
    said = workshop.said(only="train")
    assert f"warning: plugin watcher: draft_stage_finished failed: {told}" in said


def test_an_observer_that_moves_elsewhere_does_not_move_the_run(workshop, tmp_path, monkeypatch) -> None:
    info = tmp_path / "site" / "mover-3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mover\nVersion: 3\n")
    (info / "entry_points.txt").write_text("[draft.extensions]\nmove = mover_plugin\n")
    (tmp_path / "site" / "mover_plugin.py").write_text(
        "import os\nimport draft\n\n@draft.hookimpl\ndef draft_stage_started(stage):\n    os.chdir('/')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    here = Path.cwd()
    with pytest.warns(DraftWarning, match=r"plugin mover \(mover 3\) changed the current folder"):
        workshop.run(only="train")
    assert Path.cwd() == here
