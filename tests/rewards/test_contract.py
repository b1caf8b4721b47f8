"""Every reward that ships with Draft keeps the contract, on the embedded models where it needs one."""

from __future__ import annotations

from typing import Any

import pytest

from draft.rewards.discovery import DISTRIBUTION, Entry, reward_entries
from draft.rewards.loading import find_reward
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
