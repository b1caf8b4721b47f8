"""`draft rewards try`: what is drawn and printed, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("tastes")
PROMPT = ("--prompt", "a cat on a blue background")


def test_both_ways_climb_from_the_same_picture_and_are_drawn(command: Any, folder: Path) -> None:
    words = ("rewards", "try", "bright", "gain=2.0", *PROMPT, "--steps", "4", "--json")
    code, out, err = command(*words)
    assert (code, err) == (0, "wrote bright_try.png\n")
    told = json.loads(out)
    assert told["reward"] == {"use": "bright", "gain": 2.0}
    for way in ("pixels", "latents"):
        frames = told[way]
        assert [frame["step"] for frame in frames] == [0, 1, 2, 3, 4]
        values = [frame["scores"][0] for frame in frames]
        assert values == sorted(values) and values[-1] > values[0] + 0.01
        assert frames[0]["change"] == [0.0] and frames[-1]["change"][0] > 1
    assert told["pixels"][0]["scores"] == pytest.approx(told["latents"][0]["scores"])
    strip = Image.open(folder / "bright_try.png")
    assert strip.size == (8 + 5 * (128 + 8), 8 + 18 + 2 * (18 + 128 + 18 + 8))
    left = [strip.getpixel((8 + column * 136 + 64, 8 + 18 + 18 + 64)) for column in (0, 4)]
    assert sum(left[1]) > sum(left[0]), "the last picture of the first row is the brighter one"

    code, _, err = command(*words)
    assert code == 2
    assert "bright_try.png: the output is already there" in err


def test_less_goes_down_from_noise_and_a_table_is_printed(command: Any, folder: Path) -> None:
    words = ("--less", "--start", "noise", "--on", "pixels", "--seconds", "1e-9", "-o", "dark.png")
    code, out, err = command("rewards", "try", "bright", "--prompt", "a cat", "--prompt", "a dog", *words)
    assert (code, err) == (0, "")
    heading, first, last, wrote = out.splitlines()
    assert heading.split() == ["on", "step", "score", "change"]
    assert (first.split()[:2], last.split()[:2], wrote) == (["pixels", "0"], ["pixels", "1"], "wrote dark.png")
    assert all(float(last.split()[i]) < float(first.split()[i]) for i in (2, 3)), "both pictures"


def test_pictures_that_are_compared_are_four(command: Any, folder: Path) -> None:
    code, out, _ = command("rewards", "try", "unlike", *PROMPT, "--on", "latents", "--steps", "1", "--json")
    assert code == 0
    assert len(json.loads(out)["latents"][0]["scores"]) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["crowd", *PROMPT],
            "reward 'crowd' has no gradient, so there is nothing to climb\n  hint: `draft rewards score",
        ),
        (["bright"], "no prompt to start from"),
        (["bright", *PROMPT, "--seconds", "1", "--steps", "1"], "a trial takes --seconds or --steps, not both"),
        (["bright", *PROMPT, "--seconds", "0"], "command line, --seconds: must be greater than 0 (got 0)"),
        (["bright", *PROMPT, "--steps", "0"], "command line, --steps: must be at least 1 (got 0)"),
        (["bright", *PROMPT, "--model", "emojy"], "no such model (got 'emojy')\n  hint: did you mean 'emoji'?"),
        (["bright", *PROMPT, "-o", "gone/a.png"], "the output lies in a folder that does not exist"),
        (["bright", *PROMPT, "-o", "a.txt"], "the strip must be a picture such as .png (got 'a.txt')"),
        (["brigth", *PROMPT], "did you mean 'bright'?"),
        (["clip_score", *PROMPT], "or --stand-in uses the small embedded models instead"),
    ],
)
def test_whatever_is_wrong_is_told_and_nothing_is_written(
    command: Any, folder: Path, words: list[str], told: str
) -> None:
    code, out, err = command("rewards", "try", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert not list(folder.iterdir())
