"""LoRA files: what an adapter is, read from any known format and written in one that every tool reads alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from draft.adapters.config import Alphas, adapter_config, read_alphas, read_config
from draft.adapters.container import read_tensors, write_bytes, write_tensors
from draft.adapters.factors import Adapter, Factors, fold, pad_ranks, trim_rank
from draft.adapters.keys import kohya_name, parse_key
from draft.adapters.metadata import file_metadata, json_text, lora_metadata
from draft.errors import StageError

Format = Literal["auto", "kohya", "diffusers", "peft"]

# Parameterisations that are no sum of B A, by a part of their tensors' names.
_OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "oft_": "OFT",
    "lora_mid": "a Tucker-decomposed LoRA",
    "lora_embedding_": "a LoRA of embeddings",
    "boft_": "BOFT",
    "on_input": "IA3",
    "vera_lambda": "VeRA",
}
_TRANSFORMERS = (
    "transformer.",
    "lora_transformer_",
    "lora_unet_double_blocks_",
    "lora_unet_joint_blocks_",
    "diffusion_model.",
)


def read_adapter(path: Path) -> Adapter:
    """Read a LoRA file or a peft adapter folder, whichever known format it has.

    Alpha is taken from the `.alpha` tensors, else from peft's configuration (`adapter_config.json` beside the file in
    a folder, or `lora_adapter_metadata` in the header), else it is the rank, as diffusers has it.

    Args:
        path: A `.safetensors` file, or a folder with `adapter_model.safetensors`.

    Returns:
        The adapter, factors in the file's dtype, alpha in `Factors.scale`.

    Raises:
        StageError: No such file, not safetensors, not a LoRA, a kind that is no B A, or broken numbers.

    Example:
        >>> read_adapter(Path("pony.safetensors")).ranks  # doctest: +SKIP
        {16: 192}
    """
    path = Path(path)
    config = None
    file = path
    if path.is_dir():
        file = path / "adapter_model.safetensors"
        if not file.is_file():
            raise StageError(
                "the folder holds no adapter_model.safetensors",
                where=str(path),
                hint="give a .safetensors file or a peft adapter folder",
            )
        config = read_config(path / "adapter_config.json")
    tensors, metadata = read_tensors(file)
    alphas = read_alphas(config, metadata, where=str(path))
    grouped = _group(tensors, where=str(path))
    modules = {name: _factors(name, parts, alphas, where=str(path)) for name, parts in sorted(grouped.items())}
    return Adapter(modules, _family(modules), metadata)


def write_adapter(
    adapter: Adapter, path: Path, *, format: Format = "auto", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA file with alpha folded in (alpha = rank), atomically and with the same bytes every time.

    Where alpha is not the rank, tools disagree about a file's strength; where it is, all of them agree (see
    docs/adapters.md). The scale is split evenly, sqrt|scale| on A and on B, its sign on B; scale 1 changes nothing.

    Args:
        adapter: What to write.
        path: The file; with format `peft` a path without `.safetensors` is a folder that peft itself loads.
        format: `kohya` (`lora_unet_….lora_down.weight` with `.alpha`; every tool reads it), `diffusers`
            (`unet.….lora_A.weight` with `lora_adapter_metadata`) or `peft` (`base_model.model.….lora_A.weight`,
            the UNet alone). `auto` is `kohya`, which Stable Diffusion's tools share.
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
        if not (torch.isfinite(factors.down).all() and torch.isfinite(factors.up).all()):
            raise StageError(f"{name} has values that are not finite in {_dtype_name(factors.down)}", where=str(path))
    chosen = "kohya" if format == "auto" else format
    if chosen == "kohya":
        folded = pad_ranks(folded)
    tensors = _named_tensors(folded, chosen, adapter.family, where=str(path))
    ranks = {name: factors.rank for name, factors in folded.items()}
    cross = max((f.down.shape[1] for name, f in folded.items() if name.endswith("attn2.to_k")), default=0)
    own = {**adapter.metadata, **(metadata or {})}
    header = file_metadata(own, family=adapter.family, cross=cross, rank=max(ranks.values()))
    if chosen != "kohya":
        header["lora_adapter_metadata"] = lora_metadata(ranks, prefixed=chosen == "diffusers")
    if chosen == "peft" and path.suffix != ".safetensors":
        write_tensors(tensors, path / "adapter_model.safetensors", metadata=header)
        write_bytes(path / "adapter_config.json", [json_text(adapter_config(ranks)).encode()])
    else:
        write_tensors(tensors, path, metadata=header)


def unet_factors(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """The UNet's factors (A, B) with the scale folded in, by module path within the UNet.

    Args:
        adapter: A LoRA.

    Returns:
        `{"down_blocks.0.….to_q": (A, B)}` with dW = B A.

    Raises:
        StageError: The adapter does not touch the UNet.
    """
    prefix = "unet."
    chosen = {name.removeprefix(prefix): fold(f) for name, f in adapter.modules.items() if name.startswith(prefix)}
    if not chosen:
        raise StageError("the adapter does not touch the UNet (it has text-encoder modules only)")
    return {name: (factors.down, factors.up) for name, factors in chosen.items()}


def _group(tensors: Mapping[str, Tensor], *, where: str) -> dict[str, dict[str, Tensor]]:
    """Sort tensors into modules and roles; refuse what is no plain LoRA."""
    for name in tensors:
        for mark, kind in _OTHERS.items():
            if mark in name:
                raise StageError(
                    f"{kind} is not a sum of B A, so its factors cannot be read as a LoRA (tensor {name!r})",
                    where=where,
                    hint="resave it as a plain LoRA with the tool that trained it",
                )
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key = parse_key(name)
        if key is None:
            raise _not_understood(name, tensors, where)
        parts = grouped.setdefault(key.module, {})
        if key.role in parts:
            raise StageError(f"{key.module} is there twice, under two names", where=where)
        parts[key.role] = tensor
    if not grouped:
        raise StageError("not a LoRA: the file holds no tensors", where=where)
    return grouped


def _not_understood(name: str, tensors: Iterable[str], where: str) -> StageError:
    if any(other.startswith(_TRANSFORMERS) for other in tensors):
        return StageError(
            f"a LoRA of another family than Stable Diffusion's UNet (tensor {name!r})",
            where=where,
            hint="Stable Diffusion 1, 2 and XL LoRA files are read; transformer families are not",
        )
    if any("lora" in other.lower() for other in tensors):
        return StageError(f"the name of tensor {name!r} is not understood", where=where)
    return StageError(
        f"not a LoRA: no lora_down/lora_up or lora_A/lora_B tensors (first tensor {name!r})",
        where=where,
        hint="a full checkpoint is a model, give it as `model`",
    )


def _factors(name: str, parts: Mapping[str, Tensor], alphas: Alphas, *, where: str) -> Factors:
    missing = [role for role in ("down", "up") if role not in parts]
    if missing:
        raise StageError(f"{name} lacks its {' and '.join(missing)} factor", where=where)
    down, up = parts["down"], parts["up"]
    for factor in (down, up):
        if factor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise StageError(f"{name} must hold floats (got {_dtype_name(factor)})", where=where)
        if not torch.isfinite(factor).all():
            raise StageError(f"{name} has NaN or infinite values", where=where)
    linear = down.ndim == up.ndim == 2
    convolution = down.ndim == up.ndim == 4 and tuple(up.shape[2:]) == (1, 1)
    if not (linear or convolution) or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise StageError(
            f"the factors of {name} disagree: A has shape {tuple(down.shape)}, B {tuple(up.shape)}",
            where=where,
            hint="A must be (rank, in), B (out, rank); a convolution's (rank, in, k, k) and (out, rank, 1, 1)",
        )
    rank = down.shape[0]
    down, up = trim_rank(down, up)
    if "alpha" not in parts:
        return Factors(down, up, alphas.scale(name, rank))
    alpha = parts["alpha"]
    if alpha.numel() != 1 or not math.isfinite(float(alpha)):
        raise StageError(f"the alpha of {name} must be one finite number (got shape {tuple(alpha.shape)})", where=where)
    return Factors(down, up, float(alpha) / rank)


def _family(modules: Mapping[str, Factors]) -> str:
    """Tell SDXL from its predecessors by its second text encoder, deeper transformers, wider context."""
    for name, factors in modules.items():
        deep = any(f".transformer_blocks.{i}." in name for i in range(1, 10))
        if name.startswith("text_encoder_2.") or "add_embedding" in name or deep:
            return "sdxl"
        if name.endswith(("attn2.to_k", "attn2.to_v")) and factors.down.shape[1] == 2048:
            return "sdxl"
    return "sd"


def _named_tensors(folded: Mapping[str, Factors], format: str, family: str, *, where: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, factors in folded.items():
        if format == "kohya":
            base = kohya_name(name)
            if base is None:
                raise StageError(
                    f"kohya's format has no unambiguous name for {name}", where=where, hint="write format: diffusers"
                )
            base = base.replace("lora_te_", "lora_te1_") if family == "sdxl" else base
            tensors[f"{base}.lora_down.weight"] = factors.down
            tensors[f"{base}.lora_up.weight"] = factors.up
            tensors[f"{base}.alpha"] = torch.tensor(float(factors.rank), dtype=torch.float32)
            continue
        if format == "peft":
            part, _, path = name.partition(".")
            if part != "unet":
                raise StageError(
                    f"a peft adapter belongs to one model, here the UNet; {name} is outside it",
                    where=where,
                    hint="write format: kohya or diffusers",
                )
            name = f"base_model.model.{path}"
        tensors[f"{name}.lora_A.weight"] = factors.down
        tensors[f"{name}.lora_B.weight"] = factors.up
    return tensors


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
