"""The images on which a stage failed, saved where one can look at them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from draft.errors import StageError
from draft.files import write_text
from draft.report.pictures import save_pictures, to_picture

BROKEN = "not_finite"
"""The folder in a stage's own; it goes when the stage begins again."""


@contextmanager
def saving_images(folder: Path) -> Iterator[None]:
    """Save the images that an error of the block has, and add a note that says where.

    Args:
        folder: The stage's folder.

    Yields:
        Nothing.
    """
    try:
        yield
    except StageError as error:
        if error.images:
            target = folder / BROKEN
            forget_images(folder)
            # A pixel that is no number is black.
            files = save_pictures([to_picture(torch.nan_to_num(image, 0.0)) for _, image in error.images], target)
            lines = [f"{file.name}: {prompt}" for file, (prompt, _) in zip(files, error.images, strict=True)]
            write_text(target / "prompts.txt", "\n".join(lines) + "\n")
            error.add_note(f"images: {target}")
        raise


def forget_images(folder: Path) -> None:
    """Remove what an earlier attempt has saved.

    Args:
        folder: The stage's folder.
    """
    shutil.rmtree(folder / BROKEN, ignore_errors=True)
