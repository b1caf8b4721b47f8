"""The linters, run as tests, so that one command says whether the house is in order."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def passes(*command: str) -> None:
    # The tools' scripts lie beside the interpreter, whether or not the environment is activated.
    program = Path(sys.executable).parent / command[0]
    assert program.exists(), f"{command[0]} is not installed: pip install -e '.[dev]'"
    done = subprocess.run([str(program), *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


def test_ruff_finds_nothing_to_mend() -> None:
    passes("ruff", "check", "--no-cache", ".")


def test_the_code_is_formatted() -> None:
    passes("ruff", "format", "--no-cache", "--check", ".")


def test_docstrings_say_what_the_signatures_say() -> None:
    passes("pydoclint", "-q", "draft", "cli", "plugins")


def test_the_layers_import_only_downwards() -> None:
    passes("lint-imports", "--no-cache")


@pytest.mark.slow
def test_the_types_are_right() -> None:
    passes("pyright")


def test_files_stay_rooms() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for folder in ("draft", "cli", "plugins")
        for file in (ROOT / folder).rglob("*.py")
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}, "a file answers one reader's question, in about 250 lines"


def test_no_package_marker_shadows_another_package() -> None:
    assert [
        folder for folder in ("cli", "plugins", "pipelines", "tests") if (ROOT / folder / "__init__.py").exists()
    ] == []


def test_every_import_is_a_declared_dependency() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {line.split(">=")[0].strip().lower().replace("-", "_") for line in config["project"]["dependencies"]}
    declared |= {{"pillow": "pil", "pyyaml": "yaml"}.get(name, name) for name in declared}
    own = {"draft", "draft_cli", "draft_rewards", "draft_emoji"}
    foreign = set()
    for folder in ("draft", "cli/draft_cli", "plugins/draft_rewards"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_bytes())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    names = [node.module]
                foreign |= {name.partition(".")[0] for name in names}
    # Parts of pydantic and jinja2 that those two pin themselves.
    allowed = declared | own | set(sys.stdlib_module_names) | {"pydantic_core", "markupsafe"}
    assert sorted(name for name in foreign if name.lower() not in allowed) == []
