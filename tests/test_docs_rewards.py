"""The pages about rewards say what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import draft
from draft.registry.describe import options
from draft.registry.discovery import OWN, reward_entries
from draft.registry.hookspecs import ExtensionHooks, RewardHooks
from draft.registry.loading import find_reward
from draft.registry.reward import RESERVED, Reward

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "writing-a-reward.md").read_text(encoding="utf-8")
FILES = re.findall(r"```\w+ file=(\S+)\n(.*?)```", TUTORIAL, flags=re.DOTALL)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_rewards", ROOT / "docs" / "make_rewards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_rewards_is_current() -> None:
    made = generator()
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run `python docs/make_rewards.py`"


def test_every_reward_and_every_option_is_on_the_page() -> None:
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    for entry in reward_entries():
        if entry.dist == OWN:
            assert f"\n## {entry.name}\n" in text
            assert all(f"| `{option.name}` |" in text for option in options(find_reward(entry.name)))


@pytest.mark.parametrize(("name", "text"), FILES, ids=[name for name, _ in FILES])
def test_the_tutorials_files_are_those_of_the_example(name: str, text: str) -> None:
    assert (ROOT / "plugins" / "example" / name).read_text(encoding="utf-8") == text


def test_the_tutorial_shows_the_whole_example() -> None:
    shown = {name for name, _ in FILES}
    there = {
        str(file.relative_to(ROOT / "plugins" / "example"))
        for file in (ROOT / "plugins" / "example").rglob("*")
        if file.suffix in (".py", ".toml")
    }
    assert shown == there


def test_the_tutorials_notebook_lines_run(site_with_tutorial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lines,) = [code for code in re.findall(r"```python\n(.*?)```", TUTORIAL, flags=re.DOTALL) if "draft.load" in code]
    exec(compile(lines, "writing-a-reward.md", "exec"), {})
    assert "tensor([" in capsys.readouterr().out


@pytest.fixture
def site_with_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tutorial's module as an installed distribution."""
    module = dict(FILES)["draft_reward_example.py"].replace("draft_reward_example", "tutorial_reward")
    (tmp_path / "tutorial_reward.py").write_text(module, encoding="utf-8")
    info = tmp_path / "draft_reward_tutorial-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: draft-reward-tutorial\nVersion: 1.0.0\n")
    (info / "entry_points.txt").write_text("[draft]\nbrightness = tutorial_reward\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_tutorial_names_every_hook_every_reserved_key_and_every_class_attribute() -> None:
    hooks = [name for group in (RewardHooks, ExtensionHooks) for name in vars(group) if name.startswith("draft_")]
    attributes = [name for name in Reward.__class_vars__ if name not in ("name", "api_version")]
    for word in [*hooks, *RESERVED, *attributes]:
        assert f"`{word}" in TUTORIAL, f"writing-a-reward.md does not mention {word}"


def test_the_tutorial_uses_only_public_names() -> None:
    used = set(
        re.findall(r"\bdraft\.([A-Za-z_]\w*)", "\n".join(re.findall(r"```python.*?```", TUTORIAL, flags=re.DOTALL)))
    )
    assert used <= {*draft.__all__, "testing"}
