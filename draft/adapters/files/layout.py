"""What an adapter file will be, to the byte, before any of its numbers is computed: names, header, places."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from draft.adapters.factors import Adapter, Factors, all_finite, fold, pad_ranks, padded, shapes_of
from draft.adapters.files.config import CONFIG, adapter_config
from draft.adapters.files.container import header_bytes, raw_bytes, table_of, write_bytes
from draft.adapters.files.fusion import put_together
from draft.adapters.files.header import TensorInfo
from draft.adapters.files.keys import kohya_name
from draft.adapters.files.metadata import file_metadata, json_text, lora_metadata
from draft.adapters.files.names.transformers import PLANS
from draft.adapters.parallel import each
from draft.diffusion.families import family_named
from draft.errors import StageError
from draft.files import WEIGHTS

TITLES = {"unet": "UNet", "transformer": "transformer"}
"""What a denoiser is called, by its part of the pipeline."""


@dataclass(frozen=True)
class Layout:
    """An adapter file that is about to be written.

    Args:
        head: Its bytes before the data.
        table: Where each tensor goes, counted from the end of the head.
        names: The names of A, B and alpha (empty where it has none) by module, fused ones under the original code's.
        factors: A module's factors as they are written.
        config: The contents of `adapter_config.json`; None where no folder is written.
    """

    head: bytes
    table: Mapping[str, TensorInfo]
    names: Mapping[str, tuple[str, str, str]]
    factors: Callable[[str], Factors]
    config: bytes | None

    @property
    def size(self) -> int:
        """Bytes of all that will be written."""
        return len(self.head) + max(info.stop for info in self.table.values()) + len(self.config or b"")


def lay_out(adapter: Adapter, *, format: str, folder: bool, metadata: Mapping[str, str], where: str) -> Layout:
    """Lay out an adapter file.

    Args:
        adapter: What is to be written; factors that are computed on demand are not computed yet, unless the format
            fuses layers, whose rank depends on them.
        format: `kohya`, `diffusers` or `peft`.
        folder: Whether a peft folder is written.
        metadata: Further header entries; they win over the adapter's own.
        where: The file, for errors.

    Returns:
        The layout.

    Raises:
        StageError: There is nothing to write, or a module that the format has no name for.
    """
    if not adapter.modules:
        raise StageError("an adapter without modules cannot be written", where=where)
    modules = adapter.modules
    bare = dict(sorted(shapes_of(modules).items()))
    inner = {name: (shape.down.shape[1], shape.up.shape[0]) for name, shape in bare.items()}

    def finite(name: str) -> Factors:
        factors = fold(modules[name])
        if not (all_finite(factors.down) and all_finite(factors.up)):
            dtype = str(factors.down.dtype).removeprefix("torch.")
            hint = "a smaller weight, or --dtype fp32" if dtype != "float32" else "a smaller weight"
            raise StageError(f"{name} has values that are not finite in {dtype}", where=where, hint=hint)
        return factors

    finished: Callable[[str], Factors] = finite
    if format == "kohya" and adapter.family in PLANS:
        fused = put_together(dict(zip(bare, each(finite, bare), strict=True)), adapter.family)
        bare, finished = shapes_of(fused), fused.__getitem__
    elif format == "kohya":
        bare = pad_ranks(bare)
        largest = {name: shape.rank for name, shape in bare.items()}

        def with_padding(name: str) -> Factors:
            return padded(finite(name), largest[name])

        finished = with_padding
    names = {name: _names(name, format, adapter.family, where=where) for name in bare}
    tensors: dict[str, Tensor] = {}
    for name, shape in bare.items():
        tensors |= _tensors(names[name], shape)
    ranks = {name: shape.rank for name, shape in bare.items()}
    merged = {**adapter.metadata, **metadata}
    header = file_metadata(merged, family=adapter.family, shapes=inner, rank=max(ranks.values()))
    if format != "kohya":
        header["lora_adapter_metadata"] = lora_metadata(ranks, prefixed=format == "diffusers")
    table = table_of(tensors)
    config = json_text(adapter_config(ranks)).encode() if folder else None
    return Layout(header_bytes(table, header), table, names, finished, config)


def write_layout(layout: Layout, path: Path) -> None:
    """Write a file, or a peft folder, a module at a time; several are computed at once.

    Args:
        layout: The layout.
        path: A path that nothing reads yet; what is there of a failed write is for the caller to remove.

    Raises:
        StageError: Numbers that are not finite in their dtype.
        OSError: The disk refuses.
    """
    if layout.config is not None:
        path.mkdir()
        write_bytes(path / CONFIG, [layout.config])
        path /= WEIGHTS
    lock = threading.Lock()
    with path.open("wb") as file:
        file.write(layout.head)

        def write(name: str) -> None:
            for key, tensor in _tensors(layout.names[name], layout.factors(name)).items():
                data = raw_bytes(tensor)
                with lock:
                    file.seek(len(layout.head) + layout.table[key].start)
                    file.write(data)

        for _ in each(write, layout.names):
            pass


def _tensors(names: tuple[str, str, str], factors: Factors) -> dict[str, Tensor]:
    down, up, alpha = names
    tensors = {down: factors.down, up: factors.up}
    if alpha:
        tensors[alpha] = torch.tensor(float(factors.rank), dtype=torch.float32)
    return tensors


def _names(name: str, format: str, family: str, *, where: str) -> tuple[str, str, str]:
    if format == "kohya":
        base = kohya_name(name, family=family)
        if base is None:
            raise StageError(
                f"kohya's format has no unambiguous name for {name}", where=where, hint="write format: diffusers"
            )
        return f"{base}.lora_down.weight", f"{base}.lora_up.weight", f"{base}.alpha"
    if format == "peft":
        part, _, path = name.partition(".")
        denoiser = family_named(family).part
        if part != denoiser:
            raise StageError(
                f"a peft adapter belongs to one model, here the {TITLES[denoiser]}; {name} is outside it",
                where=where,
                hint="write format: kohya or diffusers",
            )
        name = f"base_model.model.{path}"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight", ""
