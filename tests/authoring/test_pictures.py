"""Picture files as rewards see them: each kind of file against what a viewer would show."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from draft.authoring.pictures import find_pictures, picture_size, read_picture
from draft.errors import ConfigError, DraftWarning


def pixel(file: Path) -> list[float]:
    """The one colour of a picture."""
    image = read_picture(file)
    assert image.dtype == torch.float32 and image.shape[0] == 3
    assert image.shape[1:] == picture_size(file)
    assert torch.equal(image.flatten(1).amin(1), image.flatten(1).amax(1))
    return image[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("RGB", (255, 102, 0), (1.0, 0.4, 0.0)),
        ("L", 51, (0.2, 0.2, 0.2)),
        ("1", 1, (1.0, 1.0, 1.0)),
        ("RGBA", (255, 0, 0, 51), (1.0, 0.8, 0.8)),
        ("LA", (0, 51), (0.8, 0.8, 0.8)),
        ("I;16", 13107, (0.2, 0.2, 0.2)),
    ],
)
def test_every_mode_becomes_rgb_over_white(tmp_path: Path, mode: str, colour: object, wanted: tuple) -> None:
    file = tmp_path / "a.png"
    Image.new(mode, (5, 3), colour).save(file)  # type: ignore[arg-type]
    assert pixel(file) == pytest.approx(wanted, abs=1e-6)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 257, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    torch.testing.assert_close(
        read_picture(tmp_path / "a.png")[1, 0].double() * 65535, torch.tensor(levels[0]).double()
    )


def test_a_transparent_palette_and_inks_are_shown(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "clear.png", transparency=1)
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "inks.jpg")
    assert pixel(tmp_path / "plain.png") == [0, 0, 1]
    assert pixel(tmp_path / "clear.png") == [1, 1, 1]
    assert pixel(tmp_path / "inks.jpg") == pytest.approx([0, 0, 0], abs=0.02)


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # what a camera held upright writes: turn by 90 degrees clockwise to view
    picture.save(tmp_path / "a.png", exif=exif)
    image = read_picture(tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png") == tuple(image.shape[1:]) == (6, 4)
    assert image[0].nonzero().tolist() == [[0, 3]]


def linear_profile() -> bytes:
    """An ICC profile of sRGB's primaries without its curve, so that a level is light itself."""
    primaries = {
        b"rXYZ": (0.43607, 0.22249, 0.01392),
        b"gXYZ": (0.38515, 0.71687, 0.09708),
        b"bXYZ": (0.14307, 0.06061, 0.71410),
        b"wtpt": (0.96420, 1.0, 0.82491),
    }
    tags = {
        name: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in xyz)) for name, xyz in primaries.items()
    }
    tags |= {name: b"curv" + bytes(8) for name in (b"rTRC", b"gTRC", b"bTRC")}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 7) + b"linear\0" + bytes(79)
    tags = {name: data + bytes(-len(data) % 4) for name, data in tags.items()}
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">2I", start + len(body), len(data))
        body += data
    head = bytearray(128)
    head[0:4] = struct.pack(">I", start + len(body))
    head[8:12] = bytes([2, 0x40, 0, 0])
    head[12:24] = b"mntrRGB XYZ "
    head[36:40] = b"acsp"
    head[68:80] = struct.pack(">3i", *(round(v * 65536) for v in primaries[b"wtpt"]))
    return bytes(head) + table + body


def test_another_colour_profile_becomes_srgb(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (55, 55, 55)).save(tmp_path / "a.png", icc_profile=linear_profile())
    Image.new("RGBA", (4, 4), (55, 55, 55, 0)).save(tmp_path / "clear.png", icc_profile=linear_profile())
    light = 55 / 255
    assert pixel(tmp_path / "a.png") == pytest.approx([1.055 * light ** (1 / 2.4) - 0.055] * 3, abs=1.5 / 255)
    assert pixel(tmp_path / "clear.png") == [1, 1, 1]
    Image.new("RGB", (4, 4), (55, 55, 55)).save(tmp_path / "bad.png", icc_profile=b"not a profile")
    with pytest.warns(DraftWarning, match=r"bad\.png: its colour profile cannot be used"):
        assert pixel(tmp_path / "bad.png") == pytest.approx([light] * 3)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("text.png", "Pillow knows no such format"),
        ("cut.png", "truncated"),
        ("light.tif", "its pixels are numbers of unknown range"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, name: str, told: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "light.tif")
    with pytest.raises(ConfigError, match=told) as raised:
        read_picture(tmp_path / name)
    assert raised.value.where == str(tmp_path / name)


def test_a_folder_is_sorted_and_hides_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.PNG", "a.jpg", ".hidden.png", "below/c.png", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert [file.name for file in find_pictures([str(tmp_path)])] == ["a.jpg", "b.PNG"]
    found = find_pictures([f"{tmp_path}/**/*.png", str(tmp_path / "notes.txt")])
    assert [file.name for file in found] == ["c.png", "notes.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_what_is_no_file_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (picture_size, read_picture):
        with pytest.raises(ConfigError, match="not a regular file"):
            read(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("size", "what"),
    [
        ((13000, 13000), r"at most 8192 pixels wide and high, with 33554432 pixels in all \(got 13000 x 13000\)"),
        ((8000, 8000), r"33554432 pixels in all \(got 8000 x 8000\)"),
        ((60000, 1), r"at most 8192 pixels wide and high.* \(got 60000 x 1\)"),
        ((1, 60000), r"\(got 1 x 60000\)"),
        ((408, 8), r"sides must be at most 1 : 50 \(got 408 x 8 pixels\)"),
    ],
)
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(
    tmp_path: Path, size: tuple[int, int], what: str
) -> None:
    Image.new("1", size).save(tmp_path / "large.png")
    for read in (picture_size, read_picture):
        with pytest.raises(ConfigError, match=what) as caught:
            read(tmp_path / "large.png")
        assert caught.value.where.endswith("large.png") and "smaller" in caught.value.hint


def test_a_picture_at_the_limits_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (400, 8), (255, 102, 0)).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == pytest.approx([1.0, 0.4, 0.0])
