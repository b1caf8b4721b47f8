"""What an adapter file holds, at a glance: sizes of its changes, how much rank they use, what its header tells."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from draft.adapters.changes import Change, Changes, scale_of
from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import read_changes
from draft.adapters.files.header import read_header
from draft.adapters.spectra import rank_of_energy, spectrum
from draft.adapters.structured import Structured
from draft.adapters.verification.contents import kinds_of
from draft.adapters.verification.verify import base_model
from draft.files import sha256, weights_file


@dataclass(frozen=True)
class Block:
    """A group of modules.

    Args:
        name: What their paths begin with.
        modules: How many there are.
        norm: ||dW||_F over all of them.
        rank: The largest rank of one.
        used: The smallest rank that holds 99 % of the energy of each of them, ||dW||_F^2.
    """

    name: str
    modules: int
    norm: float
    rank: int
    used: int


@dataclass(frozen=True)
class Facts:
    """What can be counted in an adapter file.

    Args:
        path: The file, or peft folder.
        digest: Its sha256 (a folder's: of its tensors).
        size: Its bytes.
        format: What its tensors' names are like.
        parts: How many modules it has in each part of the pipeline.
        kinds: How many modules, as the file counts them, are a `LoRA`, `LoCon` with a core, `LoHa`, `LoKr` or `DoRA`.
        ranks: How many modules have which rank or, without one, which form (`LoHa`, `LoKr`).
        alphas: How many have which alpha; alpha / rank is the scale.
        dtypes: How many tensors have which dtype.
    """

    path: Path
    digest: str
    size: int
    format: str
    parts: Mapping[str, int]
    kinds: Mapping[str, int]
    ranks: Mapping[int, int] | Mapping[int | str, int]
    alphas: Mapping[float, int]
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """What an adapter file holds.

    Args:
        facts: What is counted in it.
        family: The family of its modules.
        model: The base model whose modules these are, or "".
        norm: ||dW||_F over all modules.
        used: The rank that holds 99 % of the energy of a module: the smallest, the median and the largest.
        groups: The modules by half of the network.
        blocks: The modules by block.
        metadata: The header.
    """

    facts: Facts
    family: str
    model: str
    norm: float
    used: tuple[int, int, int]
    groups: tuple[Block, ...]
    blocks: tuple[Block, ...]
    metadata: Mapping[str, str]


def inspect_adapter(path: Path) -> Inspection:
    """Read an adapter and measure it by its factors; a dense dW is formed of LoHas of a large rank alone.

    DoRA is measured without its magnitudes, as what B A it has.

    Args:
        path: A `.safetensors` file, or a peft folder.

    Returns:
        What it holds.

    Raises:
        StageError: The file cannot be read as an adapter.

    Example:
        >>> inspect_adapter(Path("pony.safetensors")).norm  # doctest: +SKIP
        1.93
    """
    adapter = read_changes(path, dora=True)
    spectra = {name: spectrum(change) for name, change in adapter.modules.items()}
    used = sorted(rank_of_energy(values, 0.99) for values in spectra.values())
    base = base_model(adapter)
    return Inspection(
        facts=facts_of(path, adapter),
        family=adapter.family,
        model=base.name if base else "",
        norm=_norm(spectra),
        used=(used[0], used[len(used) // 2], used[-1]),
        groups=_blocks(adapter, spectra, depth=1),
        blocks=_blocks(adapter, spectra, depth=2),
        metadata=adapter.metadata,
    )


def facts_of(path: Path, adapter: Adapter | Changes) -> Facts:
    """Count what is in an adapter file.

    Args:
        path: The file, or peft folder.
        adapter: What was read from it.

    Returns:
        The counts.
    """
    file = weights_file(path)
    header = read_header(file)
    return Facts(
        path=path,
        digest=sha256(file),
        size=file.stat().st_size,
        format=file_format(header.tensors),
        parts=dict(Counter(name.partition(".")[0] for name in adapter.modules)),
        kinds=kinds_of(header.tensors),
        ranks=adapter.ranks,
        alphas=_alphas(adapter),
        dtypes=dict(sorted(Counter(info.dtype for info in header.tensors.values()).items())),
    )


def file_format(names: Mapping[str, Any]) -> str:
    """What the names of a file's tensors are like.

    Args:
        names: The tensors' names.

    Returns:
        `kohya`, `peft`, `diffusers`, `older diffusers`, `original code` or `cloneofsimo`, as docs/adapters.md calls
        them; `mixed` where they differ.
    """
    kinds = {_kind(name) for name in names if not name.endswith((".alpha", ".dora_scale"))}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def tag_counts(metadata: Mapping[str, str]) -> dict[str, int]:
    """How often the training captions of a kohya file had which tag.

    Args:
        metadata: A header; `ss_tag_frequency` is JSON, per folder of images a mapping from tag to count.

    Returns:
        Counts, most frequent first; empty where there are none.
    """
    counts: Counter[str] = Counter()
    folders = parsed(metadata.get("ss_tag_frequency", ""))
    for folder in folders.values() if isinstance(folders, dict) else ():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                counts[str(tag).strip()] += count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def parsed(text: str) -> Any:
    """A header entry that should be JSON.

    Args:
        text: The entry.

    Returns:
        The value, or None if it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _kind(name: str) -> str:
    if ":" in name:
        return "cloneofsimo"
    if name.startswith(("lora_", "lycoris_")):
        return "kohya"
    if name.startswith("base_model.model."):
        return "peft"
    if name.startswith(("diffusion_model.", "text_encoders.")):
        return "original code"
    return "diffusers" if ".lora_A." in name or ".lora_B." in name else "older diffusers"


def _alphas(adapter: Adapter | Changes) -> dict[float, int]:
    given = ((change, _rank(change)) for change in adapter.modules.values())
    return dict(sorted(Counter(round(scale_of(change) * rank, 6) for change, rank in given if rank).items()))


def _rank(change: Change) -> int:
    """What alpha is divided by; 0 where it counts for nothing, in a Kronecker product of two whole matrices."""
    if isinstance(change, Factors):
        return change.rank
    parts = change.parts if isinstance(change, Structured) else {}
    names = (name for name in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts)
    return next((parts[name].shape[0] for name in names), 0)


def _norm(spectra: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(values.square().sum()) for values in spectra.values()))


def _blocks(adapter: Adapter | Changes, spectra: Mapping[str, Tensor], *, depth: int) -> tuple[Block, ...]:
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, values in spectra.items():
        grouped.setdefault(_block(name, depth), {})[name] = values
    return tuple(
        Block(
            name=name,
            modules=len(members),
            norm=_norm(members),
            rank=max(_width(adapter.modules[member], values) for member, values in members.items()),
            used=max(rank_of_energy(values, 0.99) for values in members.values()),
        )
        for name, members in sorted(grouped.items(), key=lambda item: _natural(item[0]))
    )


def _width(change: Change, values: Tensor) -> int:
    """A product's rank; of another structure how many singular values it can have."""
    return change.rank if isinstance(change, Factors) else len(values)


def _block(name: str, depth: int) -> str:
    """The part with the half of the network, and at depth 2 the block's number."""
    part, *path = name.split(".")
    if part.startswith("text_encoder"):
        number = next((piece for piece in path if piece.isdigit()), "")
        return part if depth == 1 or not number else f"{part}.layers.{number}"
    numbered = depth == 2 and len(path) > 2 and path[1].isdigit()
    return ".".join([part, *path[: 2 if numbered else 1]])


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
