"""Every hook is documented with its exact signature, and explains itself."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from draft.rewards.hookspecs import ExtensionHooks, RewardHooks

PAGE = Path(__file__).parents[1] / "docs" / "hooks.md"


def hooks() -> dict[str, list[str]]:
    found = {}
    for group in (RewardHooks, ExtensionHooks):
        for name, function in inspect.getmembers(group, inspect.isfunction):
            if name.startswith("draft_"):
                found[name] = [p for p in inspect.signature(function).parameters if p != "self"]
    return found


def test_every_hook_has_a_heading_with_its_exact_signature() -> None:
    headings = re.findall(r"^### (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(headings) == sorted(f"{name}({', '.join(arguments)})" for name, arguments in hooks().items())


def test_every_hook_has_a_docstring_with_an_example_and_its_arguments() -> None:
    for group in (RewardHooks, ExtensionHooks):
        for name, arguments in hooks().items():
            if (function := getattr(group, name, None)) is None:
                continue
            text = inspect.getdoc(function) or ""
            assert "Example:" in text, name
            assert all(f"{argument}:" in text for argument in arguments), name
