"""The door for rewards: good, broken, misspelt, duplicate, wrongly named and disabled plugins."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from draft.errors import PluginError, PluginWarning
from draft.rewards import contract
from draft.rewards.describe import summary
from draft.rewards.discovery import reward_entries, spellings
from draft.rewards.loading import find_reward, name_of
from draft.rewards.reward import Reward
from draft.rewards.terms import build_reward, build_term, reward_config


def names() -> list[str]:
    return [entry.name for entry in reward_entries()]


def refused(name: str) -> PluginError:
    with pytest.raises(PluginError) as raised:
        find_reward(name)
    return raised.value


def test_listing_reads_metadata_and_imports_nothing(site: Any) -> None:
    site.reward("draft-a", "door_listed", "listed")
    site.install("draft-b", "door_bomb", "raise RuntimeError('must not be imported')", rewards={"bomb": "door_bomb"})
    entries = {entry.name: entry for entry in reward_entries()}
    assert entries["listed"].source == "draft-a 1.2.3"
    assert entries["bomb"].qualified == "draft-b:bomb"
    assert summary(entries["listed"]) == "A sample reward. It has two sentences."
    assert summary(entries["bomb"]) == ""
    assert not {"door_listed", "door_bomb"} & set(sys.modules)


def test_a_reward_is_loaded_by_name_and_only_that_one(site: Any) -> None:
    site.reward("draft-a", "door_first", "first")
    site.reward("draft-b", "door_second", "second")
    assert find_reward("first").name == "first"
    assert find_reward("draft-a:first") is find_reward("first")
    assert "door_second" not in sys.modules


def test_an_unknown_reward_gets_a_suggestion() -> None:
    assert refused("jepg").hint == "did you mean 'jpeg'?"
    assert "draft rewards list" in refused("nothing_of_the_kind").hint


def test_a_broken_import_names_distribution_version_and_cause(site: Any) -> None:
    site.install("draft-broken", "door_broken", "import no_such_module_anywhere", rewards={"broken": "door_broken"})
    error = refused("broken")
    assert "draft-broken 1.2.3 (door_broken): cannot be imported: ModuleNotFoundError" in error.what
    assert "'no_such_module_anywhere'" in error.hint
    assert find_reward("jpeg").name == "jpeg"


def test_even_a_plugin_that_exits_is_survived(site: Any) -> None:
    site.install("draft-exit", "door_exit", "raise SystemExit(3)", rewards={"exits": "door_exit"})
    assert "SystemExit" in refused("exits").what


def test_a_typo_in_a_hook_is_named_with_the_right_spelling(site: Any) -> None:
    source = "import draft\n@draft.hookimpl\ndef draft_reward():\n    return []\n"
    site.install("draft-typo", "door_typo", source, rewards={"typo": "door_typo"})
    error = refused("typo")
    assert "unknown hook 'draft_reward'" in error.what
    assert error.hint == "did you mean 'draft_rewards'?"


def test_a_hook_with_an_unknown_argument_is_refused(site: Any) -> None:
    source = "import draft\n@draft.hookimpl\ndef draft_rewards(extra):\n    return []\n"
    site.install("draft-argument", "door_argument", source, rewards={"argument": "door_argument"})
    assert "extra" in refused("argument").what


def test_a_forgotten_hookimpl_is_named(site: Any) -> None:
    site.install("draft-bare", "door_bare", "def draft_rewards():\n    return []\n", rewards={"bare": "door_bare"})
    assert refused("bare").hint == "mark the function with @draft.hookimpl"


def test_a_hook_that_raises_or_yields_is_named(site: Any) -> None:
    head = "import draft\n@draft.hookimpl\ndef draft_rewards():\n"
    site.install("draft-raise", "door_raise", head + "    return 1 / 0\n", rewards={"raises": "door_raise"})
    site.install("draft-yield", "door_yield", head + "    yield 1\n", rewards={"yields": "door_yield"})
    site.install("draft-thing", "door_thing", head + "    return [3]\n", rewards={"thing": "door_thing"})
    assert "raised ZeroDivisionError" in refused("raises").what
    assert "must return a list of rewards (got generator)" in refused("yields").what
    assert "subclasses of draft.Reward (got 3)" in refused("thing").what


def test_two_plugins_with_one_name_are_an_error_only_when_it_is_used(site: Any) -> None:
    site.reward("draft-one", "door_one", "twin")
    site.reward("draft-two", "door_two", "twin")
    assert names().count("twin") == 2
    error = refused("twin")
    assert "draft-one 1.2.3 and draft-two 1.2.3" in error.what
    assert error.hint == "write 'draft-one:twin' or 'draft-two:twin'"
    assert find_reward("draft-two:twin").__module__ == "door_two"


def test_a_built_in_reward_keeps_its_name_and_the_other_is_reached_by_its_distribution(site: Any) -> None:
    before = find_reward("jpeg")
    site.reward("draft-shadow", "door_shadow", "jpeg")
    with pytest.warns(PluginWarning, match="that of draft-shadow 1.2.3 is 'draft-shadow:jpeg'"):
        assert find_reward("jpeg") is before
    other = find_reward("draft-shadow:jpeg")
    assert other.__module__ == "door_shadow"
    assert (name_of(before), name_of(other)) == ("jpeg", "draft-shadow:jpeg")
    assert [name for entry, name in spellings(reward_entries()).items() if entry.name == "jpeg"] == [
        "jpeg",
        "draft-shadow:jpeg",
    ]
    terms = {name: build_term(name, {"use": name}) for name in ("jpeg", "draft-shadow:jpeg")}
    assert [reward_config(term)["use"] for term in terms.values()] == list(terms)
    # A reward made of others is sent to a process of its own as plain values: the name must lead to the same class.
    combined = build_reward("expression", {"formula": "a", "of": {"a": {"use": "draft-shadow:jpeg"}}})
    again = build_reward("expression", combined.model_dump(mode="json"))
    assert type(again.of["a"]) is other  # type: ignore[attr-defined]


def test_what_fails_in_a_plugin_is_told_with_its_line(site: Any) -> None:
    source = "import draft\n\n@draft.hookimpl\ndef draft_rewards():\n    return draft.per_prompt()\n"
    site.install("draft-line", "door_line", source, rewards={"line": "door_line"})
    assert refused("line").what.endswith(f" at {site.folder / 'door_line.py'}:5"), "not the line of the library"
    site.install("draft-syntax", "door_syntax", "import draft\n\ndef :\n", rewards={"syntax": "door_syntax"})
    assert refused("syntax").what.endswith(f" at {site.folder / 'door_syntax.py'}:3")
    site.reward("draft-nameless", "door_nameless", "nameless", field="weight: float = 1.0")
    assert refused("nameless").what.endswith(f" at {site.folder / 'door_nameless.py'}:4")


@pytest.mark.parametrize(("variable", "value"), [("DRAFT_DISABLE_PLUGINS", "1"), ("DRAFT_PLUGINS", "draft-other")])
def test_a_reward_that_is_turned_off_is_not_called_unknown_without_the_reason(
    site: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    site.reward("draft-quiet", "door_quiet", "quiet")
    monkeypatch.setenv(variable, value)
    for name in ("quiet", "draft-quiet:quiet"):
        assert refused(name).hint == f"{variable}={value} turns off draft-quiet 1.2.3, which offers it"
    assert "draft rewards list" in refused("nothing_of_the_kind").hint


def test_the_rewards_must_carry_the_names_of_their_entry_points(site: Any) -> None:
    site.reward("draft-misnamed", "door_misnamed", "really", entry="promised")
    assert "entry points promise promised but door_misnamed offers really" in refused("promised").what


@pytest.mark.parametrize("field", ["use", "weight", "isolated", "every", "device"])
def test_a_field_with_a_reserved_name_is_refused(site: Any, field: str) -> None:
    site.reward("draft-reserved", f"door_reserved_{field}", f"reserved_{field}", field=f"{field}: float = 1.0")
    assert f"has a field {field!r}, which Draft reserves" in refused(f"reserved_{field}").what


def test_a_reward_for_another_version_of_the_contract_is_refused(site: Any) -> None:
    site.reward("draft-future", "door_future", "future", field="api_version = 2")
    error = refused("future")
    assert "version 2 of the reward contract, this Draft speaks 1" in error.what
    assert error.hint == "upgrade draft-diffusion"


def test_a_reward_without_a_version_is_of_the_first_contract_whatever_this_draft_speaks(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.reward("draft-old", "door_old", "old")
    site.reward("draft-new", "door_new", "new", field="api_version = 3")
    site.reward("draft-half", "door_half", "half", field="api_version = '3'")
    monkeypatch.setattr(contract, "SUPPORTED_API", (3, 2))
    monkeypatch.setattr(Reward, "api_version", 3)
    error = refused("old")
    assert "'old' is written for version 1 of the reward contract, this Draft speaks 3, 2" in error.what
    assert error.hint == "upgrade draft-old"
    assert find_reward("new").name == "new"
    assert "must have a whole number as `api_version` (got '3')" in refused("half").what
    assert find_reward("jpeg").name == "jpeg", "Draft's own rewards are always up to date"


def test_a_stand_in_for_an_option_that_is_not_there_is_refused(site: Any) -> None:
    site.reward("draft-standing", "door_standing", "standing", field='stand_in = {"modle": "emoji/clip"}')
    assert "has a `stand_in` for 'modle', which is no option of it" in refused("standing").what


def test_an_entry_point_must_be_a_module(site: Any) -> None:
    site.install("draft-attribute", "door_attribute", "", rewards={"attribute": "door_attribute:thing"})
    assert "must be a module (got 'door_attribute:thing')" in refused("attribute").what


def test_plugins_can_be_turned_off(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.reward("draft-a", "door_off_a", "off_a")
    site.reward("draft-b", "door_off_b", "off_b")
    assert {"off_a", "off_b", "jpeg"} <= set(names())
    monkeypatch.setenv("DRAFT_PLUGINS", "Draft_B")
    assert "off_a" not in names() and {"off_b", "jpeg"} <= set(names())
    monkeypatch.setenv("DRAFT_DISABLE_PLUGINS", "1")
    assert not {"off_a", "off_b"} & set(names()) and "jpeg" in names()
    monkeypatch.setenv("DRAFT_DISABLE_PLUGINS", "0")
    monkeypatch.setenv("DRAFT_PLUGINS", "")
    assert not {"off_a", "off_b"} & set(names())
