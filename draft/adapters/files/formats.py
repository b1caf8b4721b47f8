"""LoRA files: what an adapter is, read from any known format and written in one that every tool reads alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from draft.adapters.changes import Change, Changes, Dora, FileChange, kind_of
from draft.adapters.factors import Adapter, Factors, fold
from draft.adapters.files.config import CONFIG, config_file, is_folder, read_alphas, read_config, refuse_beside
from draft.adapters.files.container import cannot_write, map_tensors, read_tensors
from draft.adapters.files.family import family_of
from draft.adapters.files.fusion import taken_apart
from draft.adapters.files.grouping import modules_of, without_magnitudes
from draft.adapters.files.header import read_header
from draft.adapters.files.layout import TITLES, lay_out, write_layout
from draft.adapters.files.lycoris import nearest
from draft.adapters.files.other_families import READ, recognised
from draft.adapters.files.reading import readable_changes, with_kernels
from draft.adapters.files.shapes import check_shapes
from draft.adapters.files.skipping import without_unreadable
from draft.diffusion.families import family_named
from draft.errors import StageError
from draft.files import WEIGHTS
from draft.outputs import publish

Format = Literal["auto", "kohya", "diffusers", "peft"]
Base: TypeAlias = Callable[[str, tuple[int, ...]], Tensor]
"""From a module's path and the shape of its weight, (out, in) or (out, in, k, k), to that weight of a base model."""


def read_adapter(path: Path, *, dense_rank: int | None = None, mapped: bool = False) -> Adapter:
    """Read a LoRA file or a peft adapter folder, whichever known format it has.

    Alpha is taken from the `.alpha` tensors, else from peft's configuration (`adapter_config.json` in the folder, also
    if its `adapter_model.safetensors` is given, or `lora_adapter_metadata` in the header), else it is the rank, as
    diffusers has it. Layers that the original code of a transformer fuses come apart into diffusers'.

    Args:
        path: A `.safetensors` file, or a folder with `adapter_model.safetensors`.
        dense_rank: The largest rank, at least 1, at which modules that are no B A (LoHa, LoKr) are read, each as the
            nearest B A of that rank; without it they are refused. Other modules keep their own.
        mapped: As in `read_changes`.

    Returns:
        The adapter, factors in the file's dtype, alpha in `Factors.scale`.

    Raises:
        StageError: No such file, not safetensors, not a LoRA, a kind that is no B A, or broken numbers.

    Example:
        >>> read_adapter(Path("pony.safetensors")).ranks  # doctest: +SKIP
        {16: 192}
    """
    if dense_rank is not None and dense_rank < 1:
        raise StageError(f"the rank must be at least 1 (got {dense_rank})")
    changes = read_changes(path, mapped=mapped)
    modules = {name: _low_rank(name, change, dense_rank, Path(path)) for name, change in changes.modules.items()}
    return Adapter(modules, changes.family, changes.metadata)


def read_changes(
    path: Path, *, skip: Sequence[str] = (), dora: bool = False, base: Base | None = None, mapped: bool = False
) -> Changes:
    """Read a LoRA file or a peft folder as it is: LoHa and LoKr stay what they are, nothing is cut or rounded.

    Args:
        path: As in `read_adapter`.
        skip: Patterns of tensors that are left out if they cannot be read, as in `without_unreadable`.
        dora: Whether DoRA is read without its magnitudes, for whoever only looks, instead of being refused.
        base: The weights of the base model, with which DoRA is read as it is.
        mapped: Whether tensors may be views of the file, for as long as nobody else writes to it: they need no memory
            of their own, and a file that is shortened meanwhile ends the process.

    Returns:
        Every module's change.

    Raises:
        StageError: As from `read_adapter`, but for LoHa and LoKr.
    """
    path = Path(path)
    where = str(path)
    header, skipped = without_unreadable(read_header(path), skip, where=where, dora=base is not None)
    metadata = dict(header.metadata)
    decomposed = base is not None
    grouped = modules_of(without_magnitudes(header) if dora else header, where=where, dora=decomposed)
    config = read_config(config_file(path))
    alphas = read_alphas(config, metadata, where=where, dora=dora or decomposed, partial=bool(skipped))
    # Only now is more read than the header: a checkpoint is refused before its gigabytes are.
    tensors = map_tensors(path, header) if mapped else read_tensors(path, header)[0]
    fused, broken = readable_changes(grouped, tensors, alphas, skip, where=where)
    try:
        modules = taken_apart(fused, where=where)
    except StageError as error:
        if not (title := recognised(header.tensors)):
            raise
        raise StageError(f"a LoRA of {title}, which is not read ({error.what})", where=where, hint=READ) from error
    shapes = {name: _shape(change) for name, change in modules.items()}
    family = family_of(shapes, header, where=where)
    encoders = family_named(family).encoders
    if len(encoders) == 2 and any(name.startswith("text_encoder_3.") for name in modules):
        # kohya's and ComfyUI's files call FLUX' T5, its second text encoder, the third, as Stable Diffusion 3's is.
        modules = {name.replace("text_encoder_3.", f"{encoders[1]}."): change for name, change in modules.items()}
    check_shapes({name: _shape(change) for name, change in modules.items()}, family, where=where)
    shaped = with_kernels(modules, family)
    for name, change in shaped.items():
        if isinstance(change, Dora) and base is not None:
            shaped[name] = replace(change, weight=partial(base, name, (change.outputs, *change.inputs)))
    return Changes(shaped, family, metadata, (*skipped, *broken))


def refuse_structured(changes: Changes, path: Path) -> None:
    """Refuse LoHa and LoKr, for whoever has no rank to cut them to.

    Args:
        changes: What `read_changes` gave.
        path: The file.

    Raises:
        StageError: One of the modules is no product B A.
    """
    for name, change in changes.modules.items():
        if not isinstance(change, Factors):
            raise _no_sum(name, change, path)


def write_adapter(
    adapter: Adapter, path: Path, *, format: Format = "auto", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA file with alpha folded in (alpha = rank), atomically and with the same bytes every time.

    Where alpha is not the rank, tools disagree about a file's strength; where it is, all of them agree (see
    docs/adapters.md). The scale is split evenly, sqrt|scale| on A and on B, its sign on B; scale 1 changes nothing.

    Args:
        adapter: What to write.
        path: The file; with format `peft` a path without `.safetensors` is a folder that peft itself loads.
        format: `kohya` (`lora_unet_….lora_down.weight` with `.alpha`; a transformer's q, k and v in one), `diffusers`
            (`unet.….lora_A.weight` with `lora_adapter_metadata`) or `peft` (`base_model.model.….lora_A.weight`,
            the UNet or the transformer alone). `auto` is what the family's tools share, see `AdapterFiles.format`.
        metadata: Further header entries; they win over the adapter's own.

    Raises:
        StageError: Nothing to write, numbers that are not finite in their dtype, a module the format has no name for,
            or the disk refuses; nothing half-written is left.
    """
    path = Path(path)
    chosen = file_format(adapter.family, format)
    folder = is_folder(path, chosen)
    refuse_beside(path, chosen)
    layout = lay_out(adapter, format=chosen, folder=folder, metadata=metadata or {}, where=str(path))
    try:
        with publish(path, folder=folder, holds=(WEIGHTS, CONFIG)) as partial:
            write_layout(layout, partial)
    except OSError as error:
        raise cannot_write(error, path) from error


def file_format(family: str, format: Format) -> Format:
    """The format that a file is written in.

    Args:
        family: The adapter's family.
        format: As asked for.

    Returns:
        The same, `auto` as the format that the family's tools share.
    """
    return family_named(family).files.format if format == "auto" else format


def denoiser_factors(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """The UNet's or transformer's factors (A, B) with the scale folded in, by module path within it.

    Args:
        adapter: A LoRA.

    Returns:
        `{"down_blocks.0.….to_q": (A, B)}` with dW = B A.

    Raises:
        StageError: The adapter touches text encoders alone.
    """
    factors = part_factors(adapter, "unet") or part_factors(adapter, "transformer")
    if not factors:
        part = TITLES[family_named(adapter.family).part]
        raise StageError(f"the adapter does not touch the {part} (it has text-encoder modules only)")
    return factors


def part_factors(adapter: Adapter, part: str) -> dict[str, tuple[Tensor, Tensor]]:
    """One component's factors (A, B) with the scale folded in, by module path within it; empty where it has none.

    Args:
        adapter: A LoRA.
        part: The component, `unet`, `transformer`, `text_encoder`, ...

    Returns:
        `{"down_blocks.0.….to_q": (A, B)}` with dW = B A.
    """
    split = {name: name.partition(".") for name in adapter.modules}
    chosen = {path: fold(adapter.modules[name]) for name, (component, _, path) in split.items() if component == part}
    return {path: (factors.down, factors.up) for path, factors in chosen.items()}


def _shape(change: FileChange) -> Factors:
    """Factors of a change's shape; there is nothing in them."""
    if isinstance(change, Factors):
        return change
    return Factors(torch.empty(1, *change.inputs, device="meta"), torch.empty(change.outputs, 1, device="meta"))


def _low_rank(name: str, change: Change, rank: int | None, path: Path) -> Factors:
    if not isinstance(change, Factors):
        if rank is None:
            raise _no_sum(name, change, path)
        return nearest(change, rank)
    if change.stored is None:
        return change
    return Factors(change.down.to(change.stored), change.up, change.scale)


def _no_sum(name: str, change: Change, path: Path) -> StageError:
    return StageError(
        f"{kind_of(change)} is not a sum of B A, so its factors cannot be read as a LoRA (module {name})",
        where=str(path),
        hint="give --rank N to draft convert, draft resize or draft mix, and the nearest LoRA of rank N is written",
    )
