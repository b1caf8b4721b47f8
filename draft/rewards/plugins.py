"""The plugin door in one place: what is installed, loading it by name, and making terms and models of it."""

from draft.rewards.discovery import RewardEntry, did_you_mean, reward_entries
from draft.rewards.extensions import (
    derived_model,
    extensions,
    make_derived,
    model_path,
    model_place,
    named_model,
    named_models,
    offered_families,
)
from draft.rewards.loading import find_reward
from draft.rewards.parts import each_reward, part_options, without_gradient
from draft.rewards.terms import build_reward, build_term, reward_config, reward_source

__all__ = [
    "RewardEntry",
    "build_reward",
    "build_term",
    "derived_model",
    "did_you_mean",
    "each_reward",
    "extensions",
    "find_reward",
    "make_derived",
    "model_path",
    "model_place",
    "named_model",
    "named_models",
    "offered_families",
    "part_options",
    "reward_config",
    "reward_entries",
    "reward_source",
    "without_gradient",
]
