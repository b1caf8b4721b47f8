"""What all reports share: sheets of pictures, numbers, tables, JSON, and pages that miss nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

from draft.report.data import as_csv, as_json, with_origin
from draft.report.numbers import mean_and_deviation, signed
from draft.report.page import render
from draft.report.pictures import Sheet, contact_sheet, fitted, to_picture
from draft.report.table import Table, as_markdown


def _tiles(count: int, size: tuple[int, int] = (4, 2)) -> list[Image.Image]:
    return [Image.new("RGB", size, (10 * index, 0, 0)) for index in range(count)]


def _reds(sheet: Image.Image, y: int) -> list[int]:
    return [sheet.getpixel((x, y))[0] for x in range(sheet.width)]  # type: ignore[index]


def test_a_single_row_becomes_the_squarest_block() -> None:
    sheet = contact_sheet([_tiles(5)], gap=0)
    assert sheet.size == (12, 4)
    assert _reds(sheet, 0) == [0] * 4 + [10] * 4 + [20] * 4
    assert _reds(sheet, 2) == [30] * 4 + [40] * 4 + [255] * 4


def test_rows_keep_their_pictures_together_and_wrap_at_the_widest() -> None:
    sheet = contact_sheet([_tiles(2), _tiles(3)], gap=1, widest=2)
    assert sheet.size == (1 + 2 * 5, 1 + 3 * 3)
    assert _reds(sheet, 1) == [255, *[0] * 4, 255, *[10] * 4, 255]
    assert _reds(sheet, 7) == [255, *[20] * 4, *[255] * 6]


def test_small_pictures_grow_by_whole_factors_and_large_ones_shrink() -> None:
    assert fitted((40, 20), 96, 256) == (120, 60)
    assert fitted((96, 96), 96, 256) == (96, 96)
    assert fitted((300, 600), 96, 256) == (128, 256)


def test_text_that_does_not_fit_ends_in_an_ellipsis_inside_its_room() -> None:
    sheet = Sheet((50, 10), columns=4, gap=0, left=0, height=20)
    sheet.write(10, 2, "a very long line " * 10, colour="black", room=60)
    dark = [x for x in range(sheet.picture.width) for y in range(20) if sheet.picture.getpixel((x, y)) != (255,) * 3]
    assert min(dark) >= 10 and 55 < max(dark) <= 70


def test_letters_beyond_latin_1_are_drawn() -> None:
    def drawn(text: str) -> bytes:
        sheet = Sheet((30, 20), columns=1, gap=0, left=0, height=20)
        sheet.write(0, 0, text, colour="black")
        return sheet.picture.tobytes()

    assert len({drawn(letter) for letter in ("è", "ж", "λ", "\uffff")}) == 4


def test_a_long_text_is_broken_at_spaces_into_at_most_three_lines() -> None:
    sheet = Sheet((50, 10), columns=1, gap=0, left=0, height=20)
    assert sheet.wrapped("a cat", 100) == ["a cat"]
    lines = sheet.wrapped("one two three four five six seven", 40)
    assert len(lines) == 3 and lines[-1].endswith(" …") and " ".join(lines).startswith("one two three")


def test_levels_are_rounded_and_what_lies_outside_is_clipped() -> None:
    image = torch.tensor([-1.0, 0.4999 / 255, 0.6 / 255, 1.5]).reshape(1, 2, 2).expand(3, -1, -1)
    assert [to_picture(image).getpixel((x, y)) for y in (0, 1) for x in (0, 1)] == [
        (0,) * 3, (0,) * 3, (1,) * 3, (255,) * 3,
    ]  # fmt: skip


def test_a_mean_has_as_many_places_as_its_spread() -> None:
    assert mean_and_deviation(45.9, 0.214) == "45.90 ± 0.21"
    assert mean_and_deviation(45.9, math.nan) == "45.90"
    assert mean_and_deviation(math.nan, math.nan) == "–"
    assert (signed(0.5), signed(-0.5), signed(0.0)) == ("+0.5000", "−0.5000", "0.0000")


def test_numbers_that_are_not_finite_become_null_at_any_depth() -> None:
    text = as_json({"a": [math.nan, 1.0, (math.inf,)], "b": {"c": -math.inf}, "d": "é"})
    assert json.loads(text) == {"a": [None, 1.0, [None]], "b": {"c": None}, "d": "é"}
    assert text.endswith("}\n") and "é" in text
    assert list(with_origin({"x": 1}, "y: 2")) == ["x", "versions", "config"]


def test_csv_quotes_what_needs_it() -> None:
    assert as_csv(["a", "b"], [[1, 'x, "y"'], [math.nan, ""]]) == 'a,b\n1,"x, ""y"""\nnan,\n'


def test_a_bar_in_a_cell_does_not_end_it_in_markdown() -> None:
    table = Table(["method", "at a|b"], [["x", "1"]])
    assert as_markdown(table, align="---:") == "| method | at a\\|b |\n| --- | ---: |\n| x | 1 |"


@pytest.mark.parametrize("name", ["evaluation", "comparison", "probe", "strips"])
def test_a_page_without_one_of_its_values_is_an_error(name: str) -> None:
    with pytest.raises(UndefinedError):
        render(f"{name}/page.html.j2", title="t")
