"""Prompts' conditioning by their number: embedded once into a cache on disk that runs share, or when asked for."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import TextToImage
from draft.files import sha256, weights_digest
from draft.progress import Progress
from draft.shelves import Shelf, cache_limit, checksum, make_room, open_shelf
from draft.types import Size

TextEncoder = Literal["auto", "cached", "resident"]

_CHUNK = 64
"""Prompts that are embedded and written at once."""


@dataclass(frozen=True)
class Form:
    """The shape and precision of one tensor of a conditioning, without the batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of one prompt's."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class PromptStore:
    """The conditioning of a training's prompts, by their number in it.

    Args:
        prompts: All P prompts.
        forms: What the conditioning of one prompt looks like.
        embed: Embeds prompts, in order; the encoders are there or are read again.
        shelf: Where embeddings are kept; None: nowhere, each is embedded when it is asked for.
        upcoming: The next N prompts' numbers, as far as they are known: embedded along with one that is missing.
        at_once: Prompts that are embedded where one is missing.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        forms: Mapping[str, Form],
        embed: Callable[[Sequence[str]], Conditioning],
        *,
        shelf: Shelf | None = None,
        upcoming: Callable[[int], Sequence[int]] = lambda count: (),
        at_once: int = 1,
    ) -> None:
        self.prompts, self.forms, self.upcoming = prompts, forms, upcoming
        self._embed, self._shelf, self._at_once = embed, shelf, at_once

    def __getitem__(self, chosen: Sequence[int]) -> Conditioning:
        """The conditioning of B prompts.

        Args:
            chosen: Their numbers.

        Returns:
            Theirs on the CPU, of length B.

        Raises:
            StageError: The cache cannot be written.
        """
        texts = [str(self.prompts[number]) for number in chosen]
        if self._shelf is None:
            return self._embed(texts).to("cpu")
        read = self._read(texts)
        missing = list(dict.fromkeys(text for text in texts if text not in read))
        if missing:
            if self._at_once > 1:
                self._shelf.shrink(self._at_once * self._shelf.row_bytes)
            more = (str(self.prompts[number]) for number in self.upcoming(self._at_once))
            self.fill([*missing, *more], limit=max(self._at_once, len(missing)))
            read |= self._read(missing)
        if absent := [text for text in missing if text not in read]:  # damaged: its place on the shelf is taken
            rows = self._embed(absent).to("cpu")
            read |= {text: rows[k : k + 1] for k, text in enumerate(absent)}
        return Conditioning.cat(read[text] for text in texts)

    def fill(self, texts: Iterable[str], *, limit: int | None = None) -> int:
        """Embed what is not on the shelf yet.

        Args:
            texts: Texts, repetitions allowed; the first ones come first.
            limit: How many are embedded at most; None: all.

        Returns:
            How many were.
        """
        assert self._shelf is not None
        wanted = list(dict.fromkeys(texts))[: limit if limit is not None else None]
        stored = self._shelf.find(wanted)
        new = [text for text in wanted if text not in stored]
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            self._shelf.add(chunk, _rows(self._embed(chunk).to("cpu")))
        self._shelf.used()
        return len(new)

    def _read(self, texts: Sequence[str]) -> dict[str, Conditioning]:
        """What is on the shelf undamaged, by text."""
        assert self._shelf is not None
        rows = self._shelf.find(dict.fromkeys(texts))
        read = {}
        for text, (number, digest) in rows.items():
            row = self._shelf.read(number)
            if checksum(row) == digest:
                read[text] = Conditioning({name: _tensor(row[name], form) for name, form in self.forms.items()})
        return read


def open_store(
    model: TextToImage,
    prompts: Sequence[str],
    size: Size,
    *,
    kind: TextEncoder,
    upcoming: Callable[[int], Sequence[int]],
    draws: int,
    reopen: Callable[[], TextToImage],
    progress: Progress,
    root: Path | None = None,
) -> tuple[PromptStore, bool]:
    """Embed what a training will draw, as far as it fits, so that the text encoders can be freed.

    Args:
        model: The model with its text encoders.
        prompts: All prompts.
        size: The images' size.
        kind: `resident` embeds each batch when it is drawn, with the encoders kept; `cached` embeds all that will be
            drawn into the cache on disk first; `auto` does so too, and where that exceeds the cache's limit embeds as
            much as half of the limit holds, then the next as much when it is needed, with the encoders read again.
        upcoming: The numbers of the prompts that will be drawn next, in order.
        draws: Prompts that will be drawn in all.
        reopen: Loads the model again, for encoders that were freed.
        progress: Hears what is embedded.
        root: The folder of shelves; None: the one in the cache folder.

    Returns:
        The store, and whether the encoders must stay.
    """
    if kind == "resident":
        return PromptStore(prompts, {}, lambda texts: model.encode(texts, size)), True
    first = upcoming(1)
    sample = model.encode([str(prompts[number]) for number in first], size)
    forms = {name: Form(tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in sample.tensors.items()}
    row = sum(form.bytes for form in forms.values())
    numbers = dict.fromkeys(upcoming(min(draws, len(prompts))))  # in as many draws as there are prompts, all are drawn
    limit = cache_limit()
    windows = kind == "auto" and len(numbers) * row > limit
    at_once = max(1, limit // 2 // row) if windows else len(numbers)
    to_embed = list(numbers)[:at_once]
    shelf = open_shelf(_about(model, size, forms), {name: form.bytes for name, form in forms.items()}, root=root)
    make_room(len(to_embed) * row, keep=shelf.folder, root=root)

    def embed(texts: Sequence[str]) -> Conditioning:
        if model.encoders:
            return model.encode(texts, size)
        other = reopen()
        conditioning = other.encode(texts, size)
        other.drop_encoders()
        return conditioning

    store = PromptStore(prompts, forms, embed, shelf=shelf, upcoming=upcoming, at_once=at_once if windows else 1)
    new = store.fill(str(prompts[number]) for number in to_embed)
    if windows:
        progress.say(
            f"{len(numbers)} prompts need {len(numbers) * row / 1e9:.1f} GB of embeddings, more than the cache's limit "
            f"of {limit / 1e9:g} GB: {at_once} are embedded at a time"
        )
    elif len(to_embed) > _CHUNK:
        progress.say(f"{len(to_embed)} prompts embedded, {len(to_embed) - new} of them by earlier runs")
    return store, False


def _about(model: TextToImage, size: Size, forms: Mapping[str, Form]) -> dict[str, str]:
    """Everything that decides a prompt's embedding besides the prompt."""
    import transformers

    return {
        "family": model.family.name,
        "encoders": " ".join(weights_digest(path)[:16] for path in model.text_files),
        "code": _code_digest(model)[:16],
        "libraries": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "precision": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "size": str(size),
        "tensors": ", ".join(f"{name} {form.shape} {form.dtype}" for name, form in sorted(forms.items())),
    }


def _code_digest(model: TextToImage) -> str:
    """The sha256 of the source that templates and pools prompts: the model's module, with those of its package."""
    module = sys.modules[type(model).__module__]
    file = Path(inspect.getsourcefile(module) or "")
    files = sorted(file.parent.glob("*.py")) if module.__package__ else [file]
    return hashlib.sha256("".join(sha256(file) for file in files if file.is_file()).encode()).hexdigest()


def _rows(conditioning: Conditioning) -> list[dict[str, bytes]]:
    count = len(conditioning)
    raw = {name: t.contiguous().view(count, -1).view(torch.uint8) for name, t in conditioning.tensors.items()}
    return [{name: values[row].numpy().tobytes() for name, values in raw.items()} for row in range(count)]


def _tensor(row: bytes, form: Form) -> Tensor:
    return torch.frombuffer(bytearray(row), dtype=form.dtype).view(1, *form.shape)
