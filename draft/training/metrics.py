"""metrics.jsonl: one line per update, cut back to the checkpoint when a training goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from draft.files import write_text


def truncate_metrics(path: Path, step: int) -> list[dict[str, float]]:
    """Keep the lines of the first `step` updates and drop the rest, a half-written last line too.

    Args:
        path: The file; may be missing.
        step: Updates that the resumed training has made.

    Returns:
        The kept lines.
    """
    rows: list[dict[str, float]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if row["step"] > step:
                break
            rows.append(row)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def append_metrics(path: Path, row: Mapping[str, float]) -> None:
    """Add one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(row)) + "\n")
