"""The pages about rewards say what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import draft
from draft.rewards.describe import options
from draft.rewards.discovery import DISTRIBUTION, reward_entries
from draft.rewards.hookspecs import ExtensionHooks, RewardHooks
from draft.rewards.loading import find_reward
from draft.rewards.reward import RESERVED, Reward

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "writing-a-reward.md").read_text(encoding="utf-8")


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
        if entry.dist == DISTRIBUTION:
            assert f"\n## {entry.name}\n" in text
            assert all(f"| `{option.name}` |" in text for option in options(find_reward(entry.name)))


def test_the_tutorial_names_every_hook_every_reserved_key_and_every_class_attribute() -> None:
    hooks = [name for group in (RewardHooks, ExtensionHooks) for name in vars(group) if name.startswith("draft_")]
    attributes = [name for name in Reward.__class_vars__ if name not in ("name", "api_version")]
    for word in [*hooks, *RESERVED, *attributes]:
        assert f"`{word}" in TUTORIAL, f"writing-a-reward.md does not mention {word}"


def test_the_tutorial_uses_only_public_names() -> None:
    used = set(
        re.findall(r"\bdraft\.([A-Za-z_]\w*)", "\n".join(re.findall(r"```python.*?```", TUTORIAL, flags=re.DOTALL)))
    )
    assert used <= {*draft.__all__, "errors", "testing"}
