"""The few types every layer shares. Importing this costs nothing: torch is only named, never imported."""

from __future__ import annotations

import operator
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from draft.errors import DraftError

if TYPE_CHECKING:
    from torch import Tensor

    Images: TypeAlias = Tensor
    """Float, shape (B, 3, H, W), sRGB in [0, 1]."""
    Scores: TypeAlias = Tensor
    """Float, shape (B,); higher where there is more of the named thing."""
    Latents: TypeAlias = Tensor
    """Float, shape (B, C, ...): (B, C, H, W), (B, C, F, H, W) and (B, C, L) are all latents."""
else:
    Images = Scores = Latents = Any


@dataclass(frozen=True)
class Size:
    """The size of an image or a video.

    Args:
        height: In pixels.
        width: In pixels.
        frames: 1 for an image.
    """

    height: int
    width: int
    frames: int = 1

    def __str__(self) -> str:
        return f"{self.height} x {self.width}" + (f" x {self.frames} frames" if self.frames > 1 else "")


def size_of(resolution: int | tuple[int, int] | None, default: Size) -> Size:
    """The size that a setting means.

    Args:
        resolution: A square image's side or (height, width), in pixels; None: the default.
        default: The model's own size.

    Returns:
        The size.

    Example:
        >>> size_of((768, 1344), Size(512, 512)), size_of(None, Size(512, 512))
        (Size(height=768, width=1344, frames=1), Size(height=512, width=512, frames=1))
    """
    if resolution is None:
        return default
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    return Size(height, width)


class Texts(Sequence[str]):
    """Many texts in one block of UTF-8, 8 bytes more than the text each; Python's own would take some 60.

    Args:
        texts: The texts.

    Example:
        >>> texts = Texts(["a cat", "a dog"])
        >>> texts[1], len(texts)
        ('a dog', 2)
    """

    __slots__ = ("_block", "_ends")

    def __init__(self, texts: Iterable[str]) -> None:
        block, ends = bytearray(), array("Q")
        for text in texts:
            block += str(text).encode("utf-8", "surrogatepass")
            ends.append(len(block))
        self._block, self._ends = bytes(block), ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return Texts(self[i] for i in range(*index.indices(len(self))))
        position = operator.index(index)
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"there are {len(self)} texts (got index {index})")
        start = self._ends[position - 1] if position else 0
        return self._block[start : self._ends[position]].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Texts) and (self._block, self._ends) == (other._block, other._ends)

    def __hash__(self) -> int:
        return hash((self._block, self._ends.tobytes()))


class Prompts(Sequence[str]):
    """A batch of prompts together with the other columns of the file they came from.

    It is a sequence of strings; a reward that ignores columns treats it as a list.

    Args:
        texts: The prompts, length B.
        columns: Column name to B values; every column is as long as `texts`.

    Raises:
        DraftError: A column is not as long as the prompts.

    Example:
        >>> batch = Prompts(["a cat", "a dog"], {"target": ["cat", "dog"]})
        >>> batch.column("target")
        ['cat', 'dog']
    """

    def __init__(self, texts: Iterable[str], columns: Mapping[str, Iterable[str]] | None = None) -> None:
        self._texts = _packed(texts)
        self._columns = {name: _packed(values) for name, values in (columns or {}).items()}
        for name, values in self._columns.items():
            if len(values) != len(self._texts):
                raise DraftError(
                    f"column {name!r} must have one value per prompt, {len(self._texts)} (got {len(values)})"
                )

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Prompts: ...
    def __getitem__(self, index: int | slice) -> str | Prompts:
        if isinstance(index, slice):
            return Prompts(self._texts[index], {name: values[index] for name, values in self._columns.items()})
        return self._texts[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompts) and (self._texts, self._columns) == (other._texts, other._columns)

    def __hash__(self) -> int:
        return hash((self._texts, tuple(sorted(self._columns))))

    def __repr__(self) -> str:
        shown = [repr(text) for text in self._texts[:8]] + (["..."] if len(self) > 8 else [])
        return f"Prompts([{', '.join(shown)}], columns={sorted(self._columns)})"

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the other columns, sorted."""
        return tuple(sorted(self._columns))

    def column(self, name: str) -> list[str]:
        """The values of one column, one per prompt.

        Args:
            name: The column's name in the prompt file.

        Returns:
            A list of B strings.

        Raises:
            DraftError: There is no such column.
        """
        return list(self.values(name))

    def values(self, name: str) -> Sequence[str]:
        """As `column`, without a list of its own; for files of a million lines."""
        if name not in self._columns:
            known = ", ".join(self.columns) or "none"
            raise DraftError(
                f"the prompts have no column {name!r} (columns: {known})",
                hint="columns come from a csv or jsonl prompt file",
            )
        return self._columns[name]

    def take(self, indices: Iterable[int]) -> Prompts:
        """The prompts at `indices`, in that order, repeats allowed, with their columns."""
        chosen = list(indices)
        return Prompts(
            (self._texts[i] for i in chosen),
            {name: Texts([values[i] for i in chosen]) for name, values in self._columns.items()},
        )

    def prefixed(self, prefix: str) -> Prompts:
        """The prompts with a text in front of each, and their columns as they are."""
        return Prompts((prefix + text for text in self._texts), self._columns) if prefix else self


def _packed(texts: Iterable[str]) -> Texts:
    return texts if isinstance(texts, Texts) else Texts(texts)


def reads_prompt(value: str) -> bool:
    """Whether `per_prompt` takes an option's value from the prompts: ``"{prompt}"``, or a column as ``"{column}"``."""
    return _COLUMN.fullmatch(value) is not None


_COLUMN = re.compile(r"\{(\w+)\}")


def per_prompt(value: str | float, prompts: Sequence[str]) -> list[str]:
    """An option's value for each prompt: the value itself, or where it reads ``"{column}"`` that column's.

    Args:
        value: Text or a number, or a column's name in braces; ``"{prompt}"`` is the prompt itself.
        prompts: B prompts; only a `Prompts` has columns.

    Returns:
        A list of B strings, as a prompt file holds nothing else.

    Raises:
        DraftError: The value names a column the prompts do not have.

    Example:
        >>> per_prompt("{target}", Prompts(["a cat"], {"target": ["cat"]}))
        ['cat']
        >>> [float(value) for value in per_prompt(0.5, ["a cat", "a dog"])]
        [0.5, 0.5]
    """
    text = str(value)
    match = _COLUMN.fullmatch(text)
    if match is None:
        return [text] * len(prompts)
    if match[1] == "prompt":
        return [str(prompt) for prompt in prompts]
    batch = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    return batch.column(match[1])
