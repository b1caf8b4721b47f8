"""`draft plugins`: the status of each, in a narrow terminal too, and the exit code of a broken one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

MODULES = {
    "fine": "import draft\n@draft.hookimpl\ndef draft_models():\n    return []\n",
    "raises": "import draft\n@draft.hookimpl\ndef draft_models():\n    raise OSError('disk')\n",
    "leaves": "import draft\n@draft.hookimpl\ndef draft_families():\n    raise SystemExit(0)\n",
    "wrong": "import draft\n@draft.hookimpl\ndef draft_models():\n    return ['emoji']\n",
}


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package with one extension; returns the file of its module."""
    site = tmp_path / "extensions"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name: str) -> Path:
        info = site / f"draft_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: draft-{name}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[draft.extensions]\n{name} = plugin_{name}\n", encoding="utf-8")
        (site / f"plugin_{name}.py").write_text(MODULES[name], encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"plugin_{name}", raising=False)
        return site / f"plugin_{name}.py"

    return install


def rows(out: str) -> dict[str, str]:
    """Package to status; the first rows of a package count."""
    return {
        line.split()[1]: line.split()[0] for line in out.splitlines() if line.startswith(("ok ", "off ", "broken "))
    }


def test_all_plugins_work(command: Any, extension: Any) -> None:
    extension("fine")
    code, out, _ = command("plugins")
    assert code == 0
    assert rows(out) == {"draft-diffusion": "ok", "draft-fine": "ok"}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("raises", "its hook 'draft_models' failed: OSError: disk at {file}:4"),
        ("leaves", "its hook 'draft_families' failed: SystemExit: 0 at {file}:4"),
        ("wrong", "its hook 'draft_models' failed: TypeError: 'draft_models' must return draft.NamedModel values"),
    ],
)
def test_a_broken_one_is_exit_code_1_and_says_where(command: Any, extension: Any, name: str, what: str) -> None:
    file = extension(name)
    code, out, _ = command("plugins")
    assert code == 1
    assert rows(out)[f"draft-{name}"] == "broken"
    assert f"broken: plugin draft-{name} 1.0 (plugin_{name}): {what.format(file=file)}" in out


def test_the_status_is_seen_in_a_terminal_of_80_columns(
    command: Any, extension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension("raises")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = command("plugins")
    lines = out.splitlines()
    table = lines[: lines.index("")]
    assert code == 1 and max(map(len, table)) == 80
    assert rows(out)["draft-raises"] == "broken" and table[0].split()[:2] == ["status", "package"]


def test_those_that_are_turned_off_are_said_to_be_by_what(
    command: Any, extension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension("raises")
    monkeypatch.setenv("DRAFT_PLUGINS", "draft-other")
    code, out, _ = command("plugins")
    assert (code, rows(out)["draft-raises"]) == (0, "off")
    assert "off: DRAFT_PLUGINS=draft-other turns off all packages but Draft's own and draft-other" in out
