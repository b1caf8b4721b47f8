"""The few types every layer shares. Importing this costs nothing: torch is only named, never imported."""

from __future__ import annotations

import re
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

    def __init__(self, texts: Iterable[str], columns: Mapping[str, Sequence[str]] | None = None) -> None:
        self._texts = tuple(texts)
        self._columns = {name: tuple(values) for name, values in (columns or {}).items()}
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
        return hash((self._texts, tuple(sorted(self._columns.items()))))

    def __repr__(self) -> str:
        return f"Prompts({list(self._texts)!r}, columns={sorted(self._columns)})"

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
        if name not in self._columns:
            known = ", ".join(self.columns) or "none"
            raise DraftError(
                f"the prompts have no column {name!r} (columns: {known})",
                hint="columns come from a csv or jsonl prompt file",
            )
        return list(self._columns[name])

    def take(self, indices: Iterable[int]) -> Prompts:
        """The prompts at `indices`, in that order, repeats allowed, with their columns."""
        chosen = list(indices)
        return Prompts(
            (self._texts[i] for i in chosen),
            {name: [values[i] for i in chosen] for name, values in self._columns.items()},
        )

    def prefixed(self, prefix: str) -> Prompts:
        """The prompts with a text in front of each, and their columns as they are."""
        return Prompts((prefix + text for text in self._texts), self._columns) if prefix else self


_COLUMN = re.compile(r"\{(\w+)\}")


def per_prompt(value: str, prompts: Sequence[str]) -> list[str]:
    """An option's value for each prompt: the value itself, or where it reads ``"{column}"`` that column's.

    Args:
        value: A plain string, or a column's name in braces; ``"{prompt}"`` is the prompt itself.
        prompts: B prompts; only a `Prompts` has columns.

    Returns:
        A list of B strings.

    Raises:
        DraftError: The value names a column the prompts do not have.

    Example:
        >>> per_prompt("{target}", Prompts(["a cat"], {"target": ["cat"]}))
        ['cat']
    """
    match = _COLUMN.fullmatch(value)
    if match is None:
        return [value] * len(prompts)
    if match[1] == "prompt":
        return [str(prompt) for prompt in prompts]
    batch = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    return batch.column(match[1])
