"""Every reward that ships with Draft keeps the contract, on the embedded models where it needs one."""

from __future__ import annotations

from typing import Any

import pytest

from draft.rewards.discovery import DISTRIBUTION, Entry, reward_entries
from draft.rewards.loading import find_reward
from draft.rewards.terms import build_reward
from draft.testing import check_reward

OPTIONS: dict[str, dict[str, Any]] = {
    "expression": {"formula": "a + max(b, -0.5)", "of": {"a": {"use": "rotation"}, "b": {"use": "symmetry"}}},
}
"""What a reward is checked with, where it takes options that a rehearsal leaves alone."""
OWN_REWARDS = [entry for entry in reward_entries() if entry.dist == DISTRIBUTION]


@pytest.mark.parametrize("entry", OWN_REWARDS, ids=lambda entry: entry.name)
def test_every_own_reward_keeps_the_contract(entry: Entry) -> None:
    reward = find_reward(entry.name)
    prompts = ("a cat on a blue background", "a red pizza", "a dog and a car")
    check_reward(reward(**(reward.stand_in or {}), **OPTIONS.get(entry.name, {})), prompts=prompts)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adversarial", {"target": "{target}"}),
        ("attack_rate", {"target": "{target}"}),
        ("caption", {}),
        ("clip_score", {}),
        ("expression", {"formula": "a + b", "of": {"a": {"use": "clip_score"}, "b": {"use": "jpeg"}}}),
        ("hpsv2", {}),
        ("image_reward", {}),
        ("owlvit", {}),
        ("owlvit_count", {"queries": ["a cat", "{thing}"]}),
        ("pickscore", {"text": "{style}"}),
        ("vqa", {}),
        ("vqa", {"question": "is there a cat?", "answer": "{answer}"}),
        ("emoji_judge", {}),
    ],
)
def test_rewards_that_take_a_text_from_the_prompts_say_so(name: str, options: dict[str, Any]) -> None:
    assert build_reward(name, options).uses_prompt


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adversarial", {"target": "cat"}),
        ("clip_score", {"text": "a cat"}),
        ("caption", {"text": "a {odd} cat"}),
        ("owlvit", {"queries": "a cat"}),
        ("vqa", {"question": "is there a cat?"}),
        ("expression", {"formula": "a", "of": {"a": {"use": "clip_score", "text": "a cat"}}}),
        ("emoji_judge", {"concept": "cat"}),
        ("jpeg", {}),
        ("aesthetic", {}),
        ("diversity", {}),
    ],
)
def test_rewards_with_a_text_of_their_own_make_no_such_claim(name: str, options: dict[str, Any]) -> None:
    assert not build_reward(name, options).uses_prompt


def test_no_reward_that_ships_reads_prompts_without_saying_so() -> None:
    for entry in OWN_REWARDS:
        reward = find_reward(entry.name)
        if not {"text", "target", "queries", "question", "concept", "of"} & set(reward.model_fields):
            assert reward.uses_prompt is False
