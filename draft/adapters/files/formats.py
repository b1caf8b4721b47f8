"""LoRA files: what an adapter is, read from any known format and written in one that every tool reads alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from draft.adapters.changes import Change, Changes, Whole
from draft.adapters.factors import Adapter, Factors, all_finite, fold, pad_ranks
from draft.adapters.files.config import CONFIG, adapter_config, config_file, is_folder, read_alphas, read_config
from draft.adapters.files.container import cannot_write, read_tensors, write_bytes, write_tensors
from draft.adapters.files.family import family_of
from draft.adapters.files.fusion import put_together, taken_apart
from draft.adapters.files.grouping import modules_of
from draft.adapters.files.header import read_header
from draft.adapters.files.keys import kohya_name
from draft.adapters.files.lycoris import nearest
from draft.adapters.files.metadata import file_metadata, json_text, lora_metadata
from draft.adapters.files.names.transformers import PLANS
from draft.adapters.files.other_families import READ, recognised
from draft.adapters.files.reading import readable_changes, with_kernels
from draft.adapters.files.shapes import check_shapes
from draft.adapters.files.skipping import without_unreadable
from draft.adapters.structured import Structured
from draft.diffusion.families import family_named
from draft.errors import StageError
from draft.files import WEIGHTS
from draft.outputs import publish

Format = Literal["auto", "kohya", "diffusers", "peft"]

_TITLES = {"unet": "UNet", "transformer": "transformer"}


def read_adapter(path: Path, *, dense_rank: int | None = None) -> Adapter:
    """Read a LoRA file or a peft adapter folder, whichever known format it has.

    Alpha is taken from the `.alpha` tensors, else from peft's configuration (`adapter_config.json` in the folder, also
    if its `adapter_model.safetensors` is given, or `lora_adapter_metadata` in the header), else it is the rank, as
    diffusers has it. Layers that the original code of a transformer fuses come apart into diffusers'.

    Args:
        path: A `.safetensors` file, or a folder with `adapter_model.safetensors`.
        dense_rank: The largest rank, at least 1, at which modules that are no B A (LoHa, LoKr) are read, each as the
            nearest B A of that rank; without it they are refused. Other modules keep their own.

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
    changes = read_changes(path)
    modules = {name: _low_rank(name, change, dense_rank, Path(path)) for name, change in changes.modules.items()}
    return Adapter(modules, changes.family, changes.metadata)


def read_changes(path: Path, *, skip: Sequence[str] = ()) -> Changes:
    """Read a LoRA file or a peft folder as it is: LoHa and LoKr stay what they are, nothing is cut or rounded.

    Args:
        path: As in `read_adapter`.
        skip: Patterns of tensors that are left out if they cannot be read, as in `without_unreadable`.

    Returns:
        Every module's change.

    Raises:
        StageError: As from `read_adapter`, but for LoHa and LoKr.
    """
    path = Path(path)
    where = str(path)
    header, skipped = without_unreadable(read_header(path), skip, where=where)
    metadata = dict(header.metadata)
    grouped = modules_of(header, where=where)
    alphas = read_alphas(read_config(config_file(path)), metadata, where=where)
    # Only now is more read than the header: a checkpoint is refused before its gigabytes are.
    tensors, _ = read_tensors(path, header)
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
    return Changes(with_kernels(modules, family), family, metadata, (*skipped, *broken))


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
    if not adapter.modules:
        raise StageError("an adapter without modules cannot be written", where=str(path))
    folded = {name: fold(factors) for name, factors in sorted(adapter.modules.items())}
    for name, factors in folded.items():
        if not (all_finite(factors.down) and all_finite(factors.up)):
            raise StageError(f"{name} has values that are not finite in {_dtype_name(factors.down)}", where=str(path))
    chosen = file_format(adapter.family, format)
    merged = {**adapter.metadata, **(metadata or {})}
    shapes = {name: (f.down.shape[1], f.up.shape[0]) for name, f in folded.items()}
    if chosen == "kohya":
        folded = put_together(folded, adapter.family) if adapter.family in PLANS else pad_ranks(folded)
    tensors = _named_tensors(folded, chosen, adapter.family, where=str(path))
    ranks = {name: factors.rank for name, factors in folded.items()}
    header = file_metadata(merged, family=adapter.family, shapes=shapes, rank=max(ranks.values()))
    if chosen != "kohya":
        header["lora_adapter_metadata"] = lora_metadata(ranks, prefixed=chosen == "diffusers")
    if not is_folder(path, chosen):
        write_tensors(tensors, path, metadata=header)
        return
    try:
        with publish(path, folder=True, holds=(WEIGHTS, CONFIG)) as partial:
            write_tensors(tensors, partial / WEIGHTS, metadata=header)
            write_bytes(partial / CONFIG, [json_text(adapter_config(ranks)).encode()])
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
        part = _TITLES[family_named(adapter.family).part]
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


def _shape(change: Factors | Structured) -> Factors:
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


def _no_sum(name: str, change: Structured | Whole, path: Path) -> StageError:
    kind = change.kind if isinstance(change, Structured) else "a dense change"
    return StageError(
        f"{kind} is not a sum of B A, so its factors cannot be read as a LoRA (module {name})",
        where=str(path),
        hint="give --rank N to draft convert, draft resize or draft mix, and the nearest LoRA of rank N is written",
    )


def _named_tensors(folded: Mapping[str, Factors], format: str, family: str, *, where: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    denoiser = family_named(family).part
    for name, factors in folded.items():
        if format == "kohya":
            base = kohya_name(name, family=family)
            if base is None:
                raise StageError(
                    f"kohya's format has no unambiguous name for {name}", where=where, hint="write format: diffusers"
                )
            tensors[f"{base}.lora_down.weight"] = factors.down
            tensors[f"{base}.lora_up.weight"] = factors.up
            tensors[f"{base}.alpha"] = torch.tensor(float(factors.rank), dtype=torch.float32)
            continue
        if format == "peft":
            part, _, path = name.partition(".")
            if part != denoiser:
                raise StageError(
                    f"a peft adapter belongs to one model, here the {_TITLES[denoiser]}; {name} is outside it",
                    where=where,
                    hint="write format: kohya or diffusers",
                )
            name = f"base_model.model.{path}"
        tensors[f"{name}.lora_A.weight"] = factors.down
        tensors[f"{name}.lora_B.weight"] = factors.up
    return tensors


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
