"""The recipe of `docs/isolated-rewards.md` for an environment by hand: run with wheels of this test."""

from __future__ import annotations

import os
import re
import shlex
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "isolated-rewards.md").read_text(encoding="utf-8")
RECIPE = re.search(r"```sh recipe\n(.*?)```", PAGE, re.DOTALL)
OLD_SCORE = '''
from importlib.metadata import version

import draft


class OldScore(draft.Reward):
    """A reward for an old transformers."""

    name = "old_score"
    api_version = 1

    def load(self, device):
        assert version("transformers") == "4.39.3" and version("numpy") == "1.26.4"
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


@draft.hookimpl
def draft_rewards():
    return [OldScore]
'''


def metadata_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel of nothing but metadata: its modules are borrowed from this environment."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)


def test_the_constraint_is_the_torch_of_the_repository() -> None:
    pinned = (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").splitlines()
    named = re.findall(r"torch==[\d.]+", PAGE)
    assert len(named) == 2 and set(named) == {line for line in pinned if line.startswith("torch==")}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the page's commands are for a POSIX shell")
def test_whoever_follows_the_recipe_gets_the_reward(tmp_path: Path, wheel: Callable[..., Path], pip: list[str]) -> None:
    index = tmp_path / "index"
    index.mkdir()
    for name, version in {
        "torch": "2.13.0", "pydantic": "2.14.0", "pluggy": "1.7.0", "transformers": "4.39.3", "numpy": "1.26.4",
    }.items():  # fmt: skip
        metadata_wheel(index, name, version)
    for name, version in {"torch": "2.99.0", "transformers": "5.1.0", "numpy": "2.4.0"}.items():
        metadata_wheel(index, name, version)  # what pip would take without the recipe's bounds
    wheel(
        tmp_path,
        "old_score",
        {"old_score.py": OLD_SCORE},
        entries="[draft]\nold_score = old_score\n",
        needs="draft-diffusion<1",
    )

    tools = tmp_path / "tools"
    tools.mkdir()
    for name, line in {
        "pip": f'exec {shlex.join(pip)} "$1" --no-build-isolation "${{@:2}}"',
        "python3": f'exec "{sys.executable}" "$@"',
        "draft": f'exec "{sys.executable}" -m draft "$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{line}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
    }
    assert RECIPE is not None
    for command in RECIPE[1].replace("PATH_TO_DRAFT", str(ROOT)).splitlines():
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        if command.startswith("python3 -m venv"):
            (packages,) = (tmp_path / "old").glob("lib/python*/site-packages")
            (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    assert done.stdout.splitlines()[-1] == "old_score: keeps its contract"
