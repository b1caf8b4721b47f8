"""Prompt files: plain text, csv or jsonl, read into `Prompts` with their other columns."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from draft.errors import ConfigError, DraftError
from draft.types import Prompts


def load_prompts(file: Path, *, where: str = "") -> Prompts:
    """Read the prompts of a file, with the other columns of a table.

    Args:
        file: ``.csv`` or ``.jsonl`` (a column or key ``prompt``; all others become columns of text), or any other
            ending for plain text: one prompt per line, blank lines and lines that begin with ``#`` skipped.
        where: The place that names the file, for error messages; the file itself where empty.

    Returns:
        At least one prompt.

    Raises:
        ConfigError: The file is missing, not UTF-8, empty, or has no usable ``prompt`` column.

    Example:
        >>> load_prompts(Path("animals.txt"))  # doctest: +SKIP
        Prompts(['a cat', 'a dog'], columns=[])
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(f"the prompt file {what} (got {str(file)!r})", where=where)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the prompt file is not UTF-8 text: byte {error.start} (got {str(file)!r})",
            where=where,
            hint="save it as UTF-8",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"the prompt file cannot be read: {error.strerror} (got {str(file)!r})", where=where
        ) from None
    if file.suffix == ".csv":
        rows = _csv_rows(text, file)
    elif file.suffix == ".jsonl":
        rows = _jsonl_rows(text, file)
    else:
        lines = (line.strip() for line in text.splitlines())
        rows = [(0, {"prompt": line}) for line in lines if line and not line.startswith("#")]
    if not rows:
        raise ConfigError(
            f"the prompt file has no prompts (got {str(file)!r})", where=where, hint="write one prompt per line"
        )
    return _assemble(rows, file)


def _csv_rows(text: str, file: Path) -> list[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(
                    f"this row must have {len(reader.fieldnames or ())} fields, like the header",
                    where=f"{file}:{reader.line_num}",
                    hint='put a prompt that has commas in "quotes"',
                )
            rows.append((reader.line_num, dict(row)))
    except csv.Error as error:
        raise ConfigError(f"not readable as csv: {error}", where=f"{file}:{reader.line_num}") from None
    return rows


def _jsonl_rows(text: str, file: Path) -> list[tuple[int, dict[str, str]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"not readable as JSON: {error.msg}", where=f"{file}:{number}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"every line must be a JSON object (got {line.strip()[:40]})", where=f"{file}:{number}")
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
        rows.append((number, texts))
    return rows


def _assemble(rows: list[tuple[int, dict[str, str]]], file: Path) -> Prompts:
    names = list(rows[0][1])
    for number, row in rows:
        place = f"{file}:{number}" if number else str(file)
        if "prompt" not in row:
            raise ConfigError(f"there must be a column 'prompt' (got {', '.join(sorted(row)) or 'none'})", where=place)
        if not row["prompt"].strip():
            raise ConfigError("the prompt is empty", where=place)
        if set(row) != set(names):
            raise ConfigError(
                f"every row must have the columns {', '.join(names)} (got {', '.join(row)})",
                where=place,
            )
    columns = {name: [row[name] for _, row in rows] for name in names if name != "prompt"}
    try:
        return Prompts((row["prompt"].strip() for _, row in rows), columns)
    except DraftError as error:
        raise ConfigError(error.what, where=str(file), hint=error.hint) from None
