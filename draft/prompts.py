"""Prompt files: plain text, csv or jsonl, read line by line into `Prompts` with their other columns."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from draft.errors import ConfigError, DraftError
from draft.types import Prompts, Texts

_BLOCK = 4096
"""Rows that are packed at once: unpacked ones take several times their text."""


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
        prompts = _assemble(_csv_rows(text, file), file)
    elif file.suffix == ".jsonl":
        prompts = _assemble(_jsonl_rows(text, file), file)
    else:
        prompts = Prompts(_lines(text))
    if not len(prompts):
        raise ConfigError(
            f"the prompt file has no prompts (got {str(file)!r})", where=where, hint="write one prompt per line"
        )
    return prompts


def prompts_digest(prompts: Prompts) -> str:
    """The sha256 of prompts with their columns.

    Args:
        prompts: Any number.

    Returns:
        64 hexadecimal digits, those of ``{"columns":{NAME:[...]},"prompts":[...]}`` as JSON without spaces.
    """
    digest = hashlib.sha256(b'{"columns":{')
    for number, name in enumerate(prompts.columns):
        digest.update(f"{',' if number else ''}{json.dumps(name)}:".encode())
        _update(digest, prompts.values(name))
    digest.update(b'},"prompts":')
    _update(digest, prompts)
    digest.update(b"}")
    return digest.hexdigest()


def _update(digest: hashlib._Hash, texts: Iterable[str]) -> None:
    for number, text in enumerate(texts):
        digest.update(f"{',' if number else '['}{json.dumps(text)}".encode())
    digest.update(b"]" if texts else b"[]")


Row = tuple[int, dict[str, str]]
"""A line's number, and its texts by column."""


def _lines(text: str) -> Iterator[str]:
    for block in io.StringIO(text):
        for line in block.splitlines():  # there are more ends of lines than files have
            if (prompt := line.strip()) and not prompt.startswith("#"):
                yield prompt


def _csv_rows(text: str, file: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(
                    f"this row must have {len(reader.fieldnames or ())} fields, like the header",
                    where=f"{file}:{reader.line_num}",
                    hint='put a prompt that has commas in "quotes"',
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise ConfigError(f"not readable as csv: {error}", where=f"{file}:{reader.line_num}") from None


def _jsonl_rows(text: str, file: Path) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"not readable as JSON: {error.msg}", where=f"{file}:{number}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"every line must be a JSON object (got {line.strip()[:40]})", where=f"{file}:{number}")
        yield number, {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}


def _assemble(rows: Iterable[Row], file: Path) -> Prompts:
    blocks: dict[str, list[str]] = {}
    packed: dict[str, list[Texts]] = {}
    for count, (number, row) in enumerate(rows):
        if not blocks:
            blocks = {name: [] for name in row}
            packed = {name: [] for name in row}
        place = f"{file}:{number}"
        if "prompt" not in row:
            raise ConfigError(f"there must be a column 'prompt' (got {', '.join(sorted(row)) or 'none'})", where=place)
        if not row["prompt"].strip():
            raise ConfigError("the prompt is empty", where=place)
        if set(row) != set(blocks):
            raise ConfigError(
                f"every row must have the columns {', '.join(blocks)} (got {', '.join(row)})",
                where=place,
            )
        for name, value in row.items():
            blocks[name].append(value.strip() if name == "prompt" else value)
        if count % _BLOCK == _BLOCK - 1:
            for name, values in blocks.items():
                packed[name].append(Texts(values))
                values.clear()
    columns = {name: Texts(chain(*packed[name], values)) for name, values in blocks.items()}
    try:
        return Prompts(columns.pop("prompt", ()), columns)
    except DraftError as error:
        raise ConfigError(error.what, where=str(file), hint=error.hint) from None
