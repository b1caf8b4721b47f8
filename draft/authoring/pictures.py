"""Pictures from files: the one place where a file becomes an image as rewards see it.

What a file holds becomes float RGB in [0, 1] as a viewer would show it: the first frame, turned as its EXIF orientation
says, in sRGB where it carries another colour profile, laid over white where it is transparent, grey repeated three
times, 16 bits per channel kept where Pillow reads them.
"""

from __future__ import annotations

import glob
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from draft.errors import ConfigError, DraftWarning

SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What the names of those files end in that a folder's pictures are; a file named itself may end in anything."""

LONGEST = 8192
"""The most pixels along a side of a picture that is scored."""
LARGEST = 2**25
"""The most pixels of a picture that is scored: 400 MB as rewards see it, of which some make ten times as much."""
NARROWEST = 50
"""The most that a picture's long side may be of its short one: where a reward enlarges the short one, both grow."""

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)


def find_pictures(words: Sequence[str]) -> list[Path]:
    """The picture files that words of the command line name.

    Args:
        words: Files, folders (the pictures directly in them, sorted by name) and patterns such as ``"runs/**/*.png"``.

    Returns:
        At least one file, in the order of the words.

    Raises:
        ConfigError: A word names nothing.
    """
    pictures: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if _is_picture(file))
            what = f"the folder holds no pictures (got {word!r})"
            hint = f"pictures end in {' '.join(SUFFIXES)}; for those in folders below: '{word.rstrip('/')}/**/*.png'"
        elif path.exists():
            files, what, hint = [path], "", ""
        elif glob.has_magic(word):
            files = sorted(file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file())
            what, hint = f"no file matches the pattern (got {word!r})", ""
        else:
            files, what = [], f"no such file or folder (got {word!r})"
            hint = f"an option of the reward is given as --set {word}" if "=" in word else ""
        if not files:
            raise ConfigError(what, where="command line", hint=hint)
        pictures += files
    if not pictures:
        raise ConfigError("no images to score (got 0)", where="command line", hint="name files, folders or patterns")
    return pictures


def picture_size(file: Path) -> tuple[int, int]:
    """The height and width that `read_picture` will give, from the file's header alone.

    Args:
        file: The file.

    Returns:
        Height and width in pixels.

    Raises:
        ConfigError: The file is no picture.
    """
    with _opened(file) as picture:
        width, height = picture.size
        return (width, height) if picture.getexif().get(_ORIENTATION) in _TURNED else (height, width)


def read_picture(file: Path) -> Tensor:
    """Read a picture as rewards see it; see the module's first lines.

    Args:
        file: The file.

    Returns:
        Float32 on the CPU, (3, H, W), sRGB in [0, 1].

    Raises:
        ConfigError: The file is no picture, is cut off, or has pixels of unknown range.
    """
    with _opened(file) as picture:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        if upright.mode == "F" or (upright.mode == "I" and picture.format != "PNG"):
            raise ValueError(f"its pixels are numbers of unknown range (mode {upright.mode})")
        if upright.mode.startswith("I"):  # 16 bits, which a conversion to RGB would cut off at 255
            grey = np.asarray(upright, dtype=np.float32)
            return torch.from_numpy(grey / 65535).expand(3, -1, -1).clone()
        pixels = torch.from_numpy(np.array(_over_white(upright, file)))
        return pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _is_picture(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever Pillow reports about a bad one becomes an error that names the file."""
    if not _is_regular(file):  # opening a pipe would wait for its other end, and a device has no end
        raise ConfigError("not a picture that can be read: not a regular file", where=str(file))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            picture = Image.open(file)
        with picture:
            _check_size(picture, file)
            yield picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's message about a file that it cannot identify repeats its path.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "Pillow knows no such format" if unknown else (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"not a picture that can be read: {reason}", where=str(file)) from error


def _is_regular(file: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except OSError:
        return True  # opening it gives the reason


def _check_size(picture: Image.Image, file: Path) -> None:
    """Refuse, from its header, a picture that would fill the memory."""
    width, height = picture.size
    hint = "score a smaller copy of it"
    if max(width, height) > LONGEST or width * height > LARGEST:
        limit = f"at most {LONGEST} pixels wide and high, with {LARGEST} pixels in all"
        what = f"a picture must be {limit} (got {width} x {height})"
        raise ConfigError(what, where=str(file), hint=hint)
    if max(width, height) > NARROWEST * min(width, height):
        what = f"a picture's sides must be at most 1 : {NARROWEST} (got {width} x {height} pixels)"
        raise ConfigError(what, where=str(file), hint=hint)


def _over_white(picture: Image.Image, file: Path) -> Image.Image:
    """RGB in sRGB, without alpha."""
    profile = picture.info.get("icc_profile")
    transparent = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info
    alpha = picture.convert("RGBA").getchannel("A") if transparent else None
    if picture.mode in ("P", "PA", "RGBA", "RGBa", "RGBX"):
        picture = picture.convert("RGB")
    elif picture.mode in ("1", "LA", "La"):
        picture = picture.convert("L")
    rgb = _in_srgb(picture, profile, file) if profile else picture.convert("RGB")
    if alpha is None:
        return rgb
    rgb.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")


def _in_srgb(picture: Image.Image, profile: bytes, file: Path) -> Image.Image:
    try:
        embedded = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(embedded):
            return picture.convert("RGB")
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        converted: Any = ImageCms.profileToProfile(picture, embedded, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"{file}: its colour profile cannot be used ({reason}), so its colours are taken as sRGB"
        warnings.warn(message, DraftWarning, stacklevel=2)
        return picture.convert("RGB")
    return converted
