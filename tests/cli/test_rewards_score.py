"""`draft rewards score`: which pictures, which prompts, in which batches, and what is printed and written."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("tastes")


def paint(folder: Path, **levels: tuple[int, tuple[int, int]]) -> None:
    """Grey pictures: name to level and size (width, height)."""
    for name, (level, size) in levels.items():
        Image.new("RGB", size, (level, level, level)).save(folder / f"{name}.png")


@pytest.fixture
def pictures(folder: Path) -> Path:
    """Four pictures of two sizes, in a folder with something else."""
    (folder / "pics").mkdir()
    square, wide = (16, 16), (24, 16)
    paint(folder / "pics", a=(0, square), b=(51, wide), c=(102, square), d=(255, square))
    (folder / "pics" / "notes.txt").write_text("not a picture")
    return folder / "pics"


def test_a_pipe_gets_plain_lines_in_the_order_of_the_files(command: Any, pictures: Path) -> None:
    code, out, err = command("rewards", "score", "bright", "pics/d.png", "pics", "--set", "gain=2.0")
    assert (code, err) == (0, "")
    assert out == "2\tpics/d.png\n0\tpics/a.png\n0.4\tpics/b.png\n0.8\tpics/c.png\n2\tpics/d.png\n"


def test_a_terminal_gets_a_table_as_wide_as_it_is(command: Any, pictures: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    out = command("rewards", "score", "bright", "pics/*.png", "--prompt", "a " + "very " * 30 + "grey day")[1]
    heading, *rows, mean = out.splitlines()
    assert heading.split() == ["score", "image", "prompt"]
    assert [row.split()[:3] for row in rows] == [
        ["0", "pics/a.png", "a"],
        ["0.2", "pics/b.png", "a"],
        ["0.4", "pics/c.png", "a"],
        ["1", "pics/d.png", "a"],
    ]
    assert mean == "mean 0.4 of 4"
    assert max(map(len, out.splitlines())) == 60


def test_json_and_csv_hold_the_scores_and_what_they_depend_on(command: Any, pictures: Path, folder: Path) -> None:
    words = ("rewards", "score", "bright", "pics/b.png", "pics/d.png", "--prompt", "one, two", "--set", "gain=2")
    code, out, err = command(*words, "--json", "--csv", "scores.csv")
    assert (code, err) == (0, "wrote scores.csv: 2 scores, mean 1.2\n")
    told = json.loads(out)
    assert told["reward"] == {"use": "bright", "gain": 2.0}
    assert [(row["file"], row["prompt"], row["score"]) for row in told["scores"]] == [
        ("pics/b.png", "one, two", pytest.approx(0.4)),
        ("pics/d.png", "one, two", pytest.approx(2.0)),
    ]
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == ["pics/b.png", "pics/d.png"]
    last = {"file": "pics/d.png", "prompt": "one, two", "score": "2.0", "reward": "bright", "reward.gain": "2.0"}
    assert rows[1] == last
    code, _, err = command(*words, "--csv", "scores.csv")
    assert (code, err.splitlines()[0]) == (2, "error: scores.csv: the output is already there")
    assert command(*words, "--csv", "scores.csv", "--force")[0] == 0


def scores(out: str) -> list[float]:
    return [float(line.split("\t")[0]) for line in out.splitlines()]


def test_a_batch_has_pictures_of_one_size_and_no_more_than_asked_for(command: Any, pictures: Path) -> None:
    paint(pictures, e=(9, (16, 16)), f=(9, (24, 16)))
    assert scores(command("rewards", "score", "crowd", "pics", "--batch-size", "3")[1]) == [3, 2, 3, 3, 1, 2]


def test_pictures_that_are_compared_are_scored_at_once_and_must_be_of_one_size(command: Any, pictures: Path) -> None:
    same = ("pics/a.png", "pics/c.png", "pics/d.png")
    code, out, _ = command("rewards", "score", "unlike", *same, "--batch-size", "1")
    assert code == 0
    assert scores(out) == pytest.approx([0.466667, 0.0666667, 0.533333], abs=1e-5)
    code, _, err = command("rewards", "score", "unlike", "pics")
    assert code == 2
    assert "compares pictures with each other, so all must be of one size (got 16x16 and 24x16)" in err


def test_prompts_are_one_for_all_or_one_for_each(command: Any, pictures: Path) -> None:
    assert scores(command("rewards", "score", "wordy", "pics", "--prompt", "four")[1]) == [4, 4, 4, 4]
    each = [word for text in ("a", "bb", "ccc", "dddd") for word in ("--prompt", text)]
    # b is scored apart from the others, for its size.
    assert scores(command("rewards", "score", "wordy", "pics", *each)[1]) == [1, 2, 3, 4]
    assert command("rewards", "score", "wordy", "pics", "--prompt", "a", "--prompt", "b") == (
        2,
        "",
        "error: command line: there must be one prompt for all pictures or one for each, 4 (got 2)\n"
        "  hint: pictures come in the order in which they are named, those of a folder sorted by name\n",
    )


def test_only_a_reward_that_reads_a_prompt_needs_one(command: Any, pictures: Path) -> None:
    assert command("rewards", "score", "wordy", "pics", "--set", "text=always")[0] == 0
    code, _, err = command("rewards", "score", "wordy", "pics")
    told = "error: wordy: the score depends on a prompt, and none is given\n  hint: give one with --prompt\n"
    assert (code, err) == (2, told)


def test_a_prompt_file_may_name_the_pictures_and_bring_columns(command: Any, pictures: Path) -> None:
    lines = [{"file": f"{name}.png", "prompt": "x", "word": name * n} for n, name in enumerate("dcba", start=1)]
    (pictures / "images.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    words = ("rewards", "score", "wordy", "pics", "--prompts", "pics/images.jsonl", "--set", "text={word}")
    assert scores(command(*words)[1]) == [4, 3, 2, 1]
    paint(pictures, e=(9, (16, 16)))
    code, _, err = command(*words)
    assert code == 2
    assert "error: pics/images.jsonl: no row names the picture 'pics/e.png'" in err
    (pictures / "texts.txt").write_text("a\nbb\nccc\ndddd\neeeee\n", encoding="utf-8")
    assert scores(command(*words[:4], "--prompts", "pics/texts.txt")[1]) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["brihgt", "pics"], "unknown reward (got 'brihgt')\n  hint: did you mean 'bright'?"),
        (["bright", "pics", "--set", "gian=1"], "reward 'bright' has no option 'gian'\n  hint: did you mean 'gain'?"),
        (["bright", "pics", "--set", "gain=0"], "bright.gain: must be greater than 0"),
        (["bright", "pics", "--set", "gain"], "an option must be key=value (got 'gain')"),
        (["bright", "pics", "--set", "gain=1", "--set", "gain=2"], "option 'gain' is given twice"),
        (
            ["bright", "gain=2"],
            "no such file or folder (got 'gain=2')\n  hint: an option of the reward is given as --set",
        ),
        (["bright", "gone.png"], "no such file or folder (got 'gone.png')"),
        (["bright", "pics/*.jpg"], "no file matches the pattern (got 'pics/*.jpg')"),
        (["bright", "empty"], "the folder holds no pictures (got 'empty')"),
        (["bright", "pics/notes.txt"], "pics/notes.txt: not a picture that can be read: Pillow knows no such format"),
        (["bright", "pics", "--batch-size", "0"], "command line, --batch-size: must be at least 1 (got 0)"),
        (["bright", "pics", "--prompt", "a", "--prompts", "p.txt"], "from --prompt or from --prompts, not both"),
        (["bright", "pics", "--device", "gpu"], "device 'gpu' is not available here"),
        (["bright", "pics", "--csv", "gone/a.csv"], "the output lies in a folder that does not exist"),
        (
            ["heavy", "pics", "--stand-in"],
            "reward 'heavy' has no stand-in\n  hint: give its class a `stand_in`, or set model",
        ),
        (["wordy", "pics", "--set", "text={word}", "--prompt", "a"], "wordy: the prompts have no column 'word'"),
    ],
)
def test_whatever_is_wrong_is_told_with_a_way_out(command: Any, pictures: Path, words: list[str], told: str) -> None:
    (pictures.parent / "empty").mkdir()
    code, out, err = command("rewards", "score", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


def test_missing_weights_offer_the_stand_in_and_the_stand_in_scores(command: Any, pictures: Path) -> None:
    words = ("rewards", "score", "clip_score", "pics", "--prompt", "a cat")
    code, _, err = command(*words)
    assert code == 2
    assert err.rstrip().endswith("or --stand-in uses the small embedded models instead")
    code, out, _ = command(*words, "--stand-in", "--json")
    assert code == 0
    assert json.loads(out)["reward"]["model"] == "emoji/clip"


def test_prompts_that_are_cut_are_counted_on_standard_error(command: Any, pictures: Path) -> None:
    long = "a red cat and " * 30
    words = ("rewards", "score", "clip_score", "pics/a.png", "pics/c.png", "--set", "model=emoji/clip")
    code, out, err = command(*words, "--prompt", "a cat", "--prompt", long)
    assert code == 0 and len(out.splitlines()) == 2
    cut = "warning: reward 'clip_score' reads 24 tokens of a text, and 1 of 2 prompts is longer (up to "
    assert [line.startswith(cut) for line in err.splitlines() if line.startswith("warning")] == [True]
    assert "warning" not in command(*words, "--prompt", "a cat")[2]
