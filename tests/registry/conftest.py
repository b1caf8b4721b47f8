"""Plugins as pip leaves them: a module and a `.dist-info` folder with its metadata and entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

REWARD = """
    import draft

    class Sample(draft.Reward):
        '''A sample reward. It has two sentences.

        And a second paragraph.
        '''
        name = "{name}"
        {field}

        def load(self, device):
            return lambda images, prompts: images.mean(dim=(1, 2, 3))

    @draft.hookimpl
    def draft_rewards():
        return [Sample]
"""


class Site:
    """A folder on the path into which plugins are installed.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, dist: str, module: str, source: str, *, rewards: Mapping[str, str] | None = None, extension: str = ""
    ) -> None:
        """Lay down one distribution: its module, its metadata and its entry points."""
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = self.folder / f"{dist.replace('-', '_')}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2.3\n", encoding="utf-8")
        lines = ["[draft]", *(f"{name} = {value}" for name, value in (rewards or {}).items())]
        if extension:
            lines += ["[draft.extensions]", f"{extension} = {module}"]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (info / "RECORD").write_text("", encoding="utf-8")

    def reward(self, dist: str, module: str, name: str, *, entry: str = "", field: str = "") -> None:
        """Lay down a distribution with one reward."""
        self.install(dist, module, REWARD.format(name=name, field=field), rewards={entry or name: module})

    def command(self, *words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `python -m draft` in a process of its own, with this folder on the path."""
        paths = os.pathsep.join(path for path in (str(self.folder), os.environ.get("PYTHONPATH", "")) if path)
        values = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200", **(environment or {})}
        return subprocess.run(
            [sys.executable, "-m", "draft", *words],
            env=values,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An empty folder on this process's path, where this test installs its plugins."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("DRAFT_PLUGINS", raising=False)
    monkeypatch.delenv("DRAFT_DISABLE_PLUGINS", raising=False)
    return Site(folder)
