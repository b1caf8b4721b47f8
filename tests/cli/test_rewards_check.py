"""`draft rewards check`: the conformance kit from the command line, with options, columns and stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("tastes")


def test_a_good_reward_keeps_its_contract_and_a_bad_one_breaks_it(command: Any) -> None:
    code, out, _ = command("rewards", "check", "bright", "--set", "gain=2.5")
    assert (code, out.splitlines()[-1]) == (0, "bright: keeps its contract")
    code, out, _ = command("rewards", "check", "crowd")
    assert (code, out.splitlines()[-1]) == (1, "crowd: breaks 1 of 16 checks")
    assert [line.split()[0] for line in out.splitlines() if " failed " in line] == ["batch"]


def test_columns_come_from_a_prompt_file(command: Any, folder: Path) -> None:
    words = ("rewards", "check", "wordy", "--set", "text={word}")
    code, out, _ = command(*words)
    assert code == 1
    assert "the prompts have no column 'word'" in out
    (folder / "prompts.csv").write_text("prompt,word\na cat,x\na dog,yy\na fox,zzz\n", encoding="utf-8")
    code, out, _ = command(*words, "--prompts", "prompts.csv")
    assert (code, out.splitlines()[-1]) == (0, "wordy: keeps its contract")


def test_missing_weights_are_one_error_and_the_stand_in_reaches_the_parts_of_a_reward(command: Any) -> None:
    words = ("rewards", "check", "expression", "formula=a + 0.1 * b", "of={a: {use: clip_score}, b: {use: jpeg}}")
    code, out, err = command(*words)
    assert (code, out, err.count("error: ")) == (2, "", 1)
    assert "or --stand-in uses the small embedded models instead" in err
    code, out, _ = command(*words, "--stand-in")
    assert (code, out.splitlines()[-1]) == (0, "expression: keeps its contract")


def test_a_bare_word_is_an_option_too_and_both_spellings_are_read_together(command: Any) -> None:
    code, _, err = command("rewards", "check", "bright", "gain=2.5", "--set", "gain=3")
    assert code == 2 and "option 'gain' is given twice" in err
    code, _, err = command("rewards", "check", "bright", "gain=-1")
    assert code == 2 and "bright.gain: must be greater than 0 (got -1)" in err


def test_wrong_options_are_told_all_at_once(command: Any) -> None:
    code, _, err = command("rewards", "check", "bright", "gian=1", "gain=0")
    assert code == 2
    assert err.count("error: bright.") == 2
    assert "did you mean 'gain'?" in err
