"""What a stage warned of while it ran, kept for its record, also over an interruption."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from draft.errors import DraftWarning

WARNINGS = "warnings.txt"
"""The file in the folder of a stage that runs: one warning a line."""


@contextmanager
def recording_warnings(folder: Path) -> Iterator[list[str]]:
    """Write down Draft's own warnings of the block, each once, while they are shown as ever.

    Args:
        folder: Where the stage writes; what an interrupted run of it warned of is read first.

    Yields:
        The warnings so far.
    """
    file = folder / WARNINGS
    texts = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            stream: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text = " ".join(str(message).split())
            if issubclass(category, DraftWarning) and text not in texts:
                texts.append(text)
                with file.open("a", encoding="utf-8") as record:
                    record.write(f"{text}\n")
            shown(message, category, filename, lineno, stream, line)

        warnings.showwarning = show
        yield texts
