"""Progress is a bar on a terminal and whole lines elsewhere."""

from __future__ import annotations

import io

import pytest

from draft.progress import Bar, Lines, Silent, duration, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_reporter_suits_the_stream() -> None:
    assert isinstance(progress(io.StringIO()), Lines)
    assert isinstance(progress(Terminal()), Bar)


def test_a_fast_job_prints_its_first_and_last_line_only() -> None:
    out = io.StringIO()
    lines = Lines(out, clock=Clock())
    lines.start("train", 40)
    for _ in range(40):
        lines.advance(values={"loss": 0.123456})
    lines.stop()
    assert out.getvalue() == "train: 1/40  loss 0.1235  0 s left\ntrain: 40/40  loss 0.1235  0 s\n"


def test_a_slow_job_prints_a_line_per_tenth_or_minute_with_what_is_left() -> None:
    out, clock = io.StringIO(), Clock()
    lines = Lines(out, clock=clock)
    lines.start("train", 100, done=50)
    for _ in range(50):
        clock.now += 2.0
        lines.advance()
    said = out.getvalue().splitlines()
    assert said[0] == "train: 51/100  1 min 38 s left"
    assert said[1] == "train: 61/100  1 min 18 s left"
    assert said[-1] == "train: 100/100  1 min 40 s"
    assert len(said) == 6
    assert "\r" not in out.getvalue()


def test_a_bar_shows_label_and_count_and_keeps_lines() -> None:
    out = Terminal()
    bar = Bar(out)
    bar.say("before")
    bar.start("train [a]", 2)
    bar.advance(values={"loss": 0.5})
    bar.say("a line with [brackets]")
    bar.advance()
    bar.stop()
    bar.stop()
    bar.advance()
    for text in ("before", "train [a]", "2/2", "a line with [brackets]", "loss 0.5"):
        assert text in out.getvalue()


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    silent.say("x")
    silent.start("x", 1)
    silent.advance()
    silent.stop()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
