"""From a file's tensors to the factors of its modules; whatever is no B A is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from draft.adapters.changes import inputs_of
from draft.adapters.factors import Factors, all_finite, trim_rank
from draft.adapters.files.config import Alphas
from draft.adapters.files.family import header_family
from draft.adapters.files.header import shown
from draft.adapters.files.keys import parse_key
from draft.adapters.files.lycoris import is_lycoris, lycoris_change, with_core
from draft.adapters.files.names.positional import is_positional, positional_modules
from draft.adapters.structured import Structured
from draft.errors import StageError

# What is no sum of B A at any rank worth having, by a part of its tensors' names.
_OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "boft_": "BOFT",
    "oft_": "OFT",
    "lora_embedding_": "a LoRA of embeddings",
    "on_input": "IA3",
    "ia3_l": "IA3",
    "vera_lambda": "VeRA",
    "lora_B.bias": "a LoRA with biases",
    ".diff_b": "a change of biases",
    "_norm.scale": "a change of norms",
}
_HINTS = {
    "DoRA": "its change depends on the weights of the base model, which the file does not hold; resave it as a plain "
    "LoRA with the tool that trained it"
}
_FULL = (".diff", ".diff.weight", ".set_weight", ".w_norm", ".b_norm")
_DENOISERS = (
    "transformer.",
    "transformer_blocks.",
    "diffusion_model.",
    "lora_transformer_",
    "lora_unet_",
    "lycoris_",
)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def grouped_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, where: str
) -> dict[str, dict[str, Tensor]]:
    """Sort a file's tensors into modules and roles.

    Args:
        tensors: By name.
        metadata: The file's header.
        where: The file, for errors.

    Returns:
        Tensors by module path and role (see `draft.adapters.files.keys.Key`).

    Raises:
        StageError: A name is not understood, a module is there twice, or the file is no LoRA or of a refused kind.
    """
    for name in tensors:
        _refuse(name, where)
    if is_positional(tensors):
        return positional_modules(tensors, metadata, where=where)
    grouped: dict[str, dict[str, Tensor]] = {}
    row = header_family(metadata.get("modelspec.architecture", ""))
    for name, tensor in tensors.items():
        key = parse_key(name, part=row.part if row else "")
        if key is None:
            raise _not_understood(name, tensors, where)
        parts = grouped.setdefault(key.module, {})
        if key.role in parts:
            raise StageError(f"{key.module} is there twice, under two names", where=where)
        parts[key.role] = tensor
    if not grouped:
        raise StageError("not a LoRA: the file holds no tensors", where=where)
    return grouped


def is_magnitude(name: str) -> bool:
    """Whether a tensor holds DoRA's magnitudes."""
    return any(mark in name for mark, kind in _OTHERS.items() if kind == "DoRA")


def module_change(name: str, parts: Mapping[str, Tensor], alphas: Alphas, *, where: str) -> Factors | Structured:
    """One module's change out of its tensors.

    Args:
        name: The module's path.
        parts: Its tensors by role.
        alphas: What the file says about alpha elsewhere.
        where: The file, for errors.

    Returns:
        Factors without terms that are zero on both sides, or a LoHa or LoKr.

    Raises:
        StageError: A factor is missing, of another dtype than a float's, of a shape that does not fit, or not finite.
    """
    for role, part in parts.items():
        if part.dtype not in _FLOATS and role != "alpha":
            raise StageError(f"{name} must hold floats (got {str(part.dtype).removeprefix('torch.')})", where=where)
        if role != "alpha" and not all_finite(part):
            raise StageError(f"{name} has NaN or infinite values", where=where)
    alpha = _alpha(name, parts, where)
    factors = {role: part for role, part in parts.items() if role != "alpha"}
    if is_lycoris(factors):
        return lycoris_change(name, factors, alpha, where=where)
    missing = [role for role in ("down", "up") if role not in parts]
    if missing:
        raise StageError(f"{name} lacks its {' and '.join(missing)} factor", where=where)
    down, up = parts["down"], parts["up"]
    stored = None
    if "mid" in parts:
        mid = parts["mid"]
        fits = down.ndim == mid.ndim == 4 and tuple(down.shape[2:]) == (1, 1)
        if not fits or mid.shape[:2] != (up.shape[1], down.shape[0]):
            raise StageError(
                f"the factors of {name} disagree: A has shape {tuple(down.shape)}, its core {tuple(mid.shape)}, B "
                f"{tuple(up.shape)}",
                where=where,
            )
        stored = reduce(torch.promote_types, [down.dtype, mid.dtype, up.dtype])
        down = with_core(down, mid)
    linear = down.ndim == up.ndim == 2
    convolution = down.ndim == up.ndim == 4 and tuple(up.shape[2:]) == (1, 1)
    if not (linear or convolution) or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise StageError(
            f"the factors of {name} disagree: A has shape {tuple(down.shape)}, B {tuple(up.shape)}",
            where=where,
            hint="A must be (rank, in), B (out, rank); a convolution's (rank, in, k, k) and (out, rank, 1, 1)",
        )
    rank = down.shape[0]
    scale = alphas.scale(name, rank) if alpha is None else alpha / rank
    return Factors(*trim_rank(down, up), scale, stored)


def with_kernels(modules: Mapping[str, Factors | Structured], family: str) -> dict[str, Factors | Structured]:
    """Give a UNet's convolutions the shape of convolutions where a file has them flat, and its linear layers theirs.

    LyCORIS' convolutions are flat; some of kohya's files have 1x1 convolutions for the projections of Stable Diffusion
    2 and XL, which are linear layers there.

    Args:
        modules: Changes by path.
        family: The adapter's family.

    Returns:
        The same changes, the factors of a convolution as (r, in, k, k) and (out, r, 1, 1).
    """
    cross = max((inputs_of(change)[0] for name, change in modules.items() if name.endswith("attn2.to_k")), default=0)
    shaped: dict[str, Factors | Structured] = {}
    for name, change in modules.items():
        last = name.rpartition(".")[2]
        size = {"conv1": 3, "conv2": 3, "conv": 3, "conv_in": 3, "conv_out": 3, "conv_shortcut": 1}.get(last, 0)
        columns, *kernel = inputs_of(change)
        if last in ("proj_in", "proj_out"):
            size = 1 if family == "sd" and cross == 768 else 0
            if (family == "sdxl" or cross == 1024) and kernel == [1, 1] and name.startswith("unet."):
                change, kernel = _flat(change), []
        if not kernel and size and name.startswith("unet.") and columns % size**2 == 0:
            inputs = (columns // size**2, size, size)
            if isinstance(change, Structured):
                change = replace(change, inputs=inputs)
            else:
                down, up = change.down.reshape(change.rank, *inputs), change.up[:, :, None, None]
                change = replace(change, down=down, up=up)
        shaped[name] = change
    return shaped


def _flat(change: Factors | Structured) -> Factors | Structured:
    """A 1x1 convolution's change as a linear layer's, which Stable Diffusion 2 and XL have where 1 has convolutions."""
    if isinstance(change, Structured):
        return replace(change, inputs=change.inputs[:1])
    return replace(change, down=change.down.flatten(1), up=change.up.flatten(1))


def _alpha(name: str, parts: Mapping[str, Tensor], where: str) -> float | None:
    alpha = parts.get("alpha")
    if alpha is None:
        return None
    if alpha.numel() != 1 or not math.isfinite(float(alpha)):
        raise StageError(f"the alpha of {name} must be one finite number (got shape {tuple(alpha.shape)})", where=where)
    return float(alpha)


def _refuse(name: str, where: str) -> None:
    for mark, kind in _OTHERS.items():
        if mark in name:
            raise StageError(
                f"{kind} is not a sum of B A, so its factors cannot be read as a LoRA (tensor {shown(name)})",
                where=where,
                hint=_HINTS.get(kind, "resave it as a plain LoRA with the tool that trained it"),
            )
    if name.endswith(_FULL):
        raise StageError(
            f"a full change of weights, not one of low rank (tensor {shown(name)})",
            where=where,
            hint="extract a LoRA from it with the tool that made it",
        )
    if name.startswith("bundle_emb"):
        raise StageError(
            f"the file bundles embeddings with the LoRA, which would be lost (tensor {shown(name)})",
            where=where,
            hint="save the LoRA without its embeddings; without them its trigger words would mean nothing",
        )


def _not_understood(name: str, tensors: Iterable[str], where: str) -> StageError:
    if any("lora" in other.lower() for other in tensors):
        if name.startswith(_DENOISERS):
            return StageError(
                f"a LoRA of a family that is not read (tensor {shown(name)})",
                where=where,
                hint="LoRA files of Stable Diffusion 1, 2, XL, 3, 3.5 and FLUX.1 are read",
            )
        return StageError(f"the name of tensor {shown(name)} is not understood", where=where)
    return StageError(
        f"not a LoRA: no lora_down/lora_up or lora_A/lora_B tensors (first tensor {shown(name)})",
        where=where,
        hint="a full checkpoint is a model, give it as `model`",
    )
