"""Reward terms: from a mapping in a pipeline to a checked reward, and back to plain JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

import draft
from draft.errors import ConfigError, ConfigErrors, DraftError
from draft.rewards.terms import build_term, reward_config, reward_source


def errors_of(label: str, options: dict[str, Any], where: str = "stages.train.rewards.x") -> list[DraftError]:
    with pytest.raises(DraftError) as raised:
        build_term(label, options, where=where)
    return raised.value.errors if isinstance(raised.value, ConfigErrors) else [raised.value]


def test_use_defaults_to_the_label() -> None:
    plain = build_term("jpeg", {"quality": 30, "weight": -2})
    named = build_term("hard", {"use": "jpeg", "quality": 30, "weight": -2, "device": "cpu"})
    assert plain.reward == named.reward
    assert (plain.label, plain.weight, plain.device) == ("jpeg", -2.0, "")
    assert (named.label, named.weight, named.device) == ("hard", -2.0, "cpu")


def test_the_fingerprint_sees_use_weight_and_options_but_no_label_and_no_device() -> None:
    config = reward_config(build_term("hard", {"use": "jpeg", "weight": 0.5, "device": "cuda:1"}))
    assert json.loads(json.dumps(config)) == {"use": "jpeg", "weight": 0.5, "quality": 50, "rounding": "exact"}


def test_the_source_of_a_reward_is_the_file_of_its_module() -> None:
    assert reward_source(type(build_term("jpeg", {}).reward)).name == "jpeg.py"


def test_all_errors_come_at_once_each_with_its_place() -> None:
    errors = errors_of("jpeg", {"qualty": 3, "quality": 500, "weight": "much", "every": 2, "isolated": True})
    places = {error.where.removeprefix("stages.train.rewards.x.") for error in errors}
    assert places == {"qualty", "quality", "weight", "every", "isolated"}
    by_place = {error.where.rsplit(".", 1)[-1]: error for error in errors}
    assert by_place["qualty"].hint == "did you mean 'quality'?"
    assert by_place["quality"].what == "must be at most 99 (got 500)"
    assert by_place["weight"].what == "must be a finite number (got 'much')"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quality": "50"}, "must be an integer (got '50')"),
        ({"quality": 50.5}, "must be an integer (got 50.5)"),
        ({"quality": None}, "must be an integer (got null)"),
        ({"quality": 0}, "must be at least 1 (got 0)"),
    ],
)
def test_options_are_strict(options: dict[str, Any], told: str) -> None:
    assert errors_of("jpeg", options)[0].what == told


def test_a_number_is_text_where_an_option_is_text(site: Any) -> None:
    field = "target: str = 'x'; many: str | list[str] = 'y'; word: str | None = None; factor: float | str = 1.0"
    site.reward("draft-wordy", "door_numbers", "numbers", field=field)
    term = build_term("numbers", {"target": 281, "many": [1, "b", 0.5], "word": 2, "factor": "{column}"})
    assert reward_config(term)["target"] == "281"
    assert reward_config(term)["many"] == ["1", "b", "0.5"] and reward_config(term)["word"] == "2"
    assert type(term.reward)(target=281) == build_term("numbers", {"target": "281"}).reward
    assert [error.what for error in errors_of("numbers", {"target": True, "word": [1], "factor": None})] == [
        "must be text (got true)",
        "must be text (got [1])",
        "must be a number (got null)",
        "must be text (got null)",
    ]
    prompts = draft.Prompts(["a cat", "a dog"], {"column": ["1", "2"]})
    assert draft.per_prompt(281, prompts) == ["281", "281"]
    assert [float(value) for value in draft.per_prompt(term.reward.factor, prompts)] == [1, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), True, None, "1"])
def test_a_weight_is_a_finite_number(weight: Any) -> None:
    (error,) = errors_of("jpeg", {"weight": weight})
    assert error.where == "stages.train.rewards.x.weight"


def test_an_unknown_reward_is_placed() -> None:
    (error,) = errors_of("jepg", {})
    assert (error.where, error.hint) == ("stages.train.rewards.x", "did you mean 'jpeg'?")
    (error,) = errors_of("label", {"use": "jepg"})
    assert error.where == "stages.train.rewards.x.use"
    (error,) = errors_of("label", {"use": 3})
    assert isinstance(error, ConfigError)
    assert error.what == "must be the name of a reward (got 3)"
