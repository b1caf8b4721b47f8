"""Shelves of Draft's cache: folders of rows that runs share, found by a key, bounded, shown and cleared. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from draft.errors import ConfigError, ResourceError, system_error
from draft.files import cache_folder, locked, write_text

TEXT = "text"
"""The folder of shelves in the cache folder."""

_ABOUT, _INDEX = "about.json", "index.sqlite"


@dataclass(frozen=True)
class Shelf:
    """A folder of rows of bytes, each known by the text that it was made of.

    Args:
        folder: Where it is.
        about: What all its rows have in common, in words.
        widths: Name to the bytes that it takes in each row.
    """

    folder: Path
    about: Mapping[str, str]
    widths: Mapping[str, int]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return sum(self.widths.values())

    def file(self, name: str) -> Path:
        """The file with the rows of a name."""
        return self.folder / f"{name}.rows"

    def find(self, texts: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Find texts.

        Args:
            texts: The texts.

        Returns:
            Text to its row's number and checksum; those that are not there are left out.
        """
        rows: dict[str, tuple[int, int]] = {}
        with _on_disk(self.folder), self._open() as index:
            for text in texts:
                row = index.execute("SELECT number, checksum FROM rows WHERE key = ?", (_key(text),)).fetchone()
                if row is not None:
                    rows[text] = row
        return rows

    def add(self, texts: Sequence[str], rows: Sequence[Mapping[str, bytes]]) -> None:
        """Put rows on the shelf; a text that is there already keeps its row.

        Args:
            texts: Their texts.
            rows: Name to bytes, of each.

        Raises:
            ResourceError: The disk refuses.
        """
        with _on_disk(self.folder):
            self.make()
            with locked(self.folder, timeout=-1, who="run"), self._open() as index:
                first = index.execute("SELECT COALESCE(MAX(number) + 1, 0) FROM rows").fetchone()[0]
                stored = self.find(texts)
                new = [(text, row) for text, row in dict(zip(texts, rows, strict=True)).items() if text not in stored]
                for name, width in self.widths.items():
                    path = self.file(name)
                    path.touch()
                    with path.open("r+b") as file:
                        file.seek(first * width)  # whatever a killed process left behind there is not in the index
                        for _, row in new:
                            file.write(row[name])
                        file.flush()
                        os.fsync(file.fileno())
                index.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?)",
                    [(_key(text), first + number, checksum(row)) for number, (text, row) in enumerate(new)],
                )
                index.commit()

    def read(self, number: int) -> dict[str, bytes]:
        """Read a row.

        Args:
            number: Its number.

        Returns:
            Name to bytes; fewer than a row's where the shelf was dropped or damaged.
        """
        row = {}
        for name, width in self.widths.items():
            try:
                with self.file(name).open("rb") as file:
                    file.seek(number * width)
                    row[name] = file.read(width)
            except FileNotFoundError:
                row[name] = b""
        return row

    def shrink(self, incoming: int) -> None:
        """Take all rows off the shelf if so many bytes more would exceed the cache's limit."""
        size = sum(self.file(name).stat().st_size for name in self.widths if self.file(name).exists())
        if size + incoming > cache_limit():
            drop(self.folder)

    def used(self) -> None:
        """Note that the shelf was used now, so that others are dropped first."""
        if (self.folder / _ABOUT).exists():
            os.utime(self.folder / _ABOUT)

    def make(self) -> None:
        """Make the folder where it is missing: never used yet, or dropped since."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / _ABOUT).exists():
            write_text(self.folder / _ABOUT, _description(self.about, self.widths) + "\n")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.make()
        with closing(sqlite3.connect(self.folder / _INDEX, timeout=60)) as index:
            index.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, number INTEGER, checksum INTEGER)")
            yield index


@dataclass(frozen=True)
class Stored:
    """A shelf as `draft cache` shows it.

    Args:
        folder: Where it is.
        about: What its rows have in common.
        rows: How many there are.
        size: Bytes on the disk.
        used: When it was used last, seconds since 1970.
    """

    folder: Path
    about: Mapping[str, str]
    rows: int
    size: int
    used: float


def open_shelf(about: Mapping[str, str], widths: Mapping[str, int], *, root: Path | None = None) -> Shelf:
    """Open the shelf for rows that have something in common, made if missing.

    Args:
        about: Everything that decides the rows' bytes besides their texts.
        widths: Name to the bytes that it takes in each row.
        root: The folder of shelves; None: the one in the cache folder.

    Returns:
        The shelf.

    Raises:
        ResourceError: The disk refuses.
    """
    key = hashlib.sha256(_description(about, widths).encode()).hexdigest()[:20]
    shelf = Shelf((root or cache_folder() / TEXT) / key, about, widths)
    with _on_disk(shelf.folder):
        shelf.make()
    return shelf


def shelves(root: Path | None = None) -> list[Stored]:
    """All shelves, the one used last first.

    Args:
        root: The folder of shelves; None: the one in the cache folder.

    Returns:
        What there is; folders that are no shelves are passed over.
    """
    stored = []
    for about in (root or cache_folder() / TEXT).glob(f"*/{_ABOUT}"):
        try:
            data = json.loads(about.read_text(encoding="utf-8"))
            shelf = Shelf(about.parent, data["about"], data["widths"])
            with shelf._open() as index:
                count = index.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
            size = sum(file.stat().st_size for file in about.parent.iterdir())
            stored.append(Stored(about.parent, shelf.about, count, size, about.stat().st_mtime))
        except (OSError, ValueError, KeyError, sqlite3.Error):
            continue  # being made or dropped by another process, or not ours
    return sorted(stored, key=lambda shelf: shelf.used, reverse=True)


def make_room(incoming: int, *, keep: Path | None = None, root: Path | None = None) -> None:
    """Drop shelves, the one not used for longest first, until so many bytes more are within the limit.

    Args:
        incoming: Bytes to come.
        keep: A shelf that stays.
        root: The folder of shelves; None: the one in the cache folder.
    """
    existing = shelves(root)
    total, limit = sum(shelf.size for shelf in existing), cache_limit()
    for shelf in reversed(existing):
        if total + incoming <= limit:
            break
        if shelf.folder != keep:
            drop(shelf.folder)
            total -= shelf.size


def drop(folder: Path) -> None:
    """Drop a shelf; a run that reads it keeps what it has opened, where the system allows that."""
    shutil.rmtree(folder, ignore_errors=True)


def cache_limit() -> int:
    """The bytes that all shelves may take: `DRAFT_CACHE_LIMIT` in GB (10^9 bytes), else 20 GB.

    Returns:
        Bytes.

    Raises:
        ConfigError: The variable is no number above 0.
    """
    text = os.environ.get("DRAFT_CACHE_LIMIT", "20")
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise ConfigError(f"DRAFT_CACHE_LIMIT must be a number of GB above 0 (got {text!r})", where="environment")
    return int(limit * 1e9)


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    """Report what the disk, or the index on it, refuses as an error with a way to go on without this cache."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        refused = system_error(error, folder)
        raise ResourceError(
            f"cannot write to the cache of prompt embeddings: {reason} (in {str(folder)!r})",
            needs=refused.needs if refused else "a disk with room, and an index that is not damaged",
            hint="set DRAFT_CACHE to a folder with room, clear the cache (draft cache clear), or set "
            "text_encoder: resident",
        ) from error


def _description(about: Mapping[str, str], widths: Mapping[str, int]) -> str:
    return json.dumps({"about": dict(about), "widths": dict(widths)}, sort_keys=True, indent=1)


def checksum(row: Mapping[str, bytes]) -> int:
    """The CRC-32 of a row, as `Shelf.find` gives it."""
    value = 0
    for name in sorted(row):
        value = zlib.crc32(row[name], value)
    return value


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
