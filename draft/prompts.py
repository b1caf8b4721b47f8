"""Prompt files: plain text, csv, tsv or jsonl, read line by line into `Prompts` with their other columns."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from draft.errors import ConfigError, DraftError
from draft.types import Prompts, Texts

_BLOCK = 4096
"""Rows that are packed at once: unpacked ones take several times their text."""


_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons"}
_UNREAD = (
    ".json",
    ".yaml",
    ".yml",
    ".toml",
    ".xml",
    ".html",
    ".xls",
    ".xlsx",
    ".ods",
    ".parquet",
    ".arrow",
    ".pkl",
    ".gz",
    ".zip",
)
"""Endings of formats whose lines are no prompts."""


def load_prompts(file: Path, *, where: str = "") -> Prompts:
    """Read the prompts of a file, with the other columns of a table.

    Args:
        file: ``.csv``, ``.tsv``, ``.jsonl`` or ``.ndjson``, in upper case too (a column or key ``prompt``; all others
            become columns of text), or another ending for plain text: one prompt per line, blank lines and lines that
            begin with ``#`` skipped. Endings of other formats, such as ``.json``, are refused.
        where: The place that names the file, for error messages; the file itself where empty.

    Returns:
        At least one prompt.

    Raises:
        ConfigError: The file is missing, of a format that is not read, not UTF-8, empty, or has no usable ``prompt``
            column.

    Example:
        >>> load_prompts(Path("animals.txt"))  # doctest: +SKIP
        Prompts(['a cat', 'a dog'], columns=[])
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(f"the prompt file {what} (got {str(file)!r})", where=where)
    ending = file.suffix.lower()
    if ending in _UNREAD:
        raise ConfigError(
            f"prompt files ending in {ending} are not read (got {str(file)!r})",
            where=where,
            hint="write one prompt per line into a .txt, or make a .csv, .tsv or .jsonl with a column 'prompt'",
        )
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
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ConfigError("the prompt file holds a NUL character", where=f"{file}:{line}", hint="is it a text file?")
    if ending in _SEPARATORS:
        prompts = _assemble(_csv_rows(text, file, _SEPARATORS[ending]), file)
    elif ending in (".jsonl", ".ndjson"):
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


def _csv_rows(text: str, file: Path, separator: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        _check_header(reader.fieldnames or (), file, separator)
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(
                    f"this row must have {len(reader.fieldnames or ())} fields, like the header",
                    where=f"{file}:{reader.line_num}",
                    hint=f'put a prompt that has {_SEPARATOR_NAMES[separator]} in "quotes"',
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise ConfigError(f"not readable as csv: {error}", where=f"{file}:{reader.line_num}") from None


def _check_header(names: Sequence[str], file: Path, separator: str) -> None:
    """Refuse a header with a column twice, or whose columns are separated by something else."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"the column {repeated[0]!r} is there more than once", where=f"{file}:1")
    other = next((mark for mark in _SEPARATOR_NAMES if len(names) == 1 and mark != separator and mark in names[0]), "")
    if other:
        ending = "or call it .tsv" if other == "\t" else "or save it as .tsv with tabs" if separator == "," else ""
        wanted = _SEPARATOR_NAMES[separator]
        raise ConfigError(
            f"the header must have columns separated by {wanted} (got {_SEPARATOR_NAMES[other]}: {names[0]!r})",
            where=f"{file}:1",
            hint=f"save the file with {wanted}, {ending}".rstrip(", "),
        )


def _jsonl_rows(text: str, file: Path) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_mapping)
            if "\\u" in line:  # a character of which the file holds only half
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            reason = "half a character (U+D800 to U+DFFF)" if isinstance(error, UnicodeEncodeError) else str(error)
            reason = getattr(error, "msg", reason)
            raise ConfigError(f"not readable as JSON: {reason}", where=f"{file}:{number}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"every line must be a JSON object (got {line.strip()[:40]})", where=f"{file}:{number}")
        if not isinstance(prompt := row.get("prompt", ""), str):
            raise ConfigError(f"the prompt must be text (got {json.dumps(prompt)[:40]})", where=f"{file}:{number}")
        yield number, {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {repeated[0]!r} is there more than once")
    return dict(pairs)


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
