"""From the names in a file to its modules, decided by the header alone: no tensor is read before. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from draft.adapters.files.family import header_family
from draft.adapters.files.header import Header, TensorInfo, shown
from draft.adapters.files.keys import parse_key
from draft.adapters.files.names.positional import is_positional, positional_modules
from draft.adapters.files.other_families import READ, named_in, recognised
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
    "DoRA": "its change depends on the weights of the base model, which the file does not hold; draft convert FILE "
    "--base MODEL --rank N writes the nearest LoRA, draft merge MODEL takes it as it is"
}
SCALES = (
    "scaled_fp8",
    ".scale_weight",
    ".weight_scale",
    ".weight_scale_2",
    ".scale_input",
    ".input_scale",
    ".comfy_quant",
    ".absmax",
    ".quant_map",
    ".SCB",
)
"""Ends of names of numbers that others count times: scaled float8 of ComfyUI, int8 and 4 bits of bitsandbytes."""

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_INTEGERS = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
_FULL = (".diff", ".diff.weight", ".set_weight", ".w_norm", ".b_norm")
_DENOISERS = (
    "transformer.",
    "transformer_blocks.",
    "diffusion_model.",
    "lora_transformer_",
    "lora_unet_",
    "lycoris_",
)


def modules_of(header: Header, *, where: str, dora: bool = False) -> dict[str, dict[str, TensorInfo]]:
    """Sort a file's tensors into modules and roles, and see that each module's can be factors.

    Args:
        header: The file's header.
        where: The file, for errors.
        dora: Whether DoRA's magnitudes are taken, too, instead of being refused.

    Returns:
        Tensors by module path and role (see `draft.adapters.files.keys.Key`).

    Raises:
        StageError: A name is not understood, a module is there twice, the file is no LoRA or of a refused kind, or a
            factor is missing, of another dtype than a float's, or of a shape that does not fit.
    """
    grouped = _grouped(header.tensors, header.metadata, where, dora=dora)
    for name, parts in sorted(grouped.items()):
        check_module(name, parts, where)
    return grouped


def without_magnitudes(header: Header) -> Header:
    """A header without DoRA's magnitudes, for whoever only looks at the factors."""
    marks = [mark for mark, kind in _OTHERS.items() if kind == "DoRA"]
    tensors = {name: info for name, info in header.tensors.items() if not any(mark in name for mark in marks)}
    return replace(header, tensors=tensors)


def _grouped(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], where: str, *, dora: bool
) -> dict[str, dict[str, TensorInfo]]:
    for name in tensors:
        refuse_tensor(name, where, dora=dora)
    if is_positional(tensors):
        return positional_modules(tensors, metadata, where=where)
    grouped: dict[str, dict[str, TensorInfo]] = {}
    row = header_family(metadata.get("modelspec.architecture", ""))
    for name, tensor in tensors.items():
        key = parse_key(name, part=row.part if row else "")
        if key is None:
            raise _not_understood(name, tensors, metadata, where)
        parts = grouped.setdefault(key.module, {})
        if key.role in parts:
            raise StageError(f"{key.module} is there twice, under two names", where=where)
        parts[key.role] = tensor
    if not grouped:
        raise StageError("not a LoRA: the file holds no tensors", where=where)
    return grouped


def check_module(name: str, parts: Mapping[str, TensorInfo], where: str) -> None:
    """Refuse tensors that cannot be one module's factors.

    Args:
        name: The module.
        parts: Its tensors by role.
        where: The file, for errors.

    Raises:
        StageError: As from `modules_of`.
    """
    for role, part in parts.items():
        if role == "alpha" and math.prod(part.shape) != 1:
            raise StageError(f"the alpha of {name} must be one finite number (got shape {part.shape})", where=where)
        if role != "alpha" and part.dtype not in _FLOATS:
            if (integers := _INTEGERS.get(part.dtype)) is None:
                what = f"tensor {shown(part.name)} has a dtype that no adapter has (got {part.dtype})"
                raise StageError(what, where=where)
            raise StageError(f"{name} must hold floats (got {integers})", where=where)
    if any(role.startswith(("hada_", "lokr_")) for role in parts):
        return
    if missing := [role for role in ("down", "up") if role not in parts]:
        raise StageError(f"{name} lacks its {' and '.join(missing)} factor", where=where)
    down, up = parts["down"], parts["up"]
    if mid := parts.get("mid"):
        fits = down.ndim == mid.ndim == up.ndim == 4 and down.shape[2:] == up.shape[2:] == (1, 1)
        if not fits or mid.shape[:2] != (up.shape[1], down.shape[0]) or 0 in (*down.shape, *mid.shape, *up.shape):
            raise StageError(
                f"the factors of {name} disagree: A has shape {down.shape}, its core {mid.shape}, B {up.shape}",
                where=where,
            )
        return
    linear = down.ndim == up.ndim == 2
    convolution = down.ndim == up.ndim == 4 and up.shape[2:] == (1, 1)
    if not (linear or convolution) or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise StageError(
            f"the factors of {name} disagree: A has shape {down.shape}, B {up.shape}",
            where=where,
            hint="A must be (rank, in), B (out, rank); a convolution's (rank, in, k, k) and (out, rank, 1, 1)",
        )


def refuse_tensor(name: str, where: str, *, dora: bool = False) -> None:
    """Refuse a tensor whose name says that it is no part of a B A.

    Args:
        name: The tensor's name.
        where: The file, for errors.
        dora: As in `modules_of`.

    Raises:
        StageError: What it is, and what can be done.
    """
    for mark, kind in _OTHERS.items():
        if mark in name and not (dora and kind == "DoRA"):
            raise StageError(
                f"{kind} is not a sum of B A, so its factors cannot be read as a LoRA (tensor {shown(name)})",
                where=where,
                hint=_HINTS.get(kind, "resave it as a plain LoRA with the tool that trained it"),
            )
    if name.endswith(SCALES):
        raise StageError(
            f"its numbers are quantised and count times scales of their own (tensor {shown(name)})",
            where=where,
            hint="save it in fp16, bf16 or fp32 with the tool that quantised it; plain float8 is read",
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


def _not_understood(
    name: str, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], where: str
) -> StageError:
    if not any(mark in other.lower() for other in tensors for mark in ("lora", "lokr_", "hada_")):
        return StageError(
            f"not a LoRA: no lora_down/lora_up or lora_A/lora_B tensors (first tensor {shown(name)})",
            where=where,
            hint="a full checkpoint is a model, give it as `model`",
        )
    header = named_in(metadata)
    if title := header[0] if header else recognised(tensors):
        return StageError(
            f"a LoRA of {title}, a family that is not read (tensor {shown(name)})", where=where, hint=READ
        )
    if name.startswith(_DENOISERS):
        return StageError(f"a LoRA of a family that is not read (tensor {shown(name)})", where=where, hint=READ)
    if name.startswith(("unet.", "text_encoder")):
        return StageError(
            f"a module that no model here has (tensor {shown(name)})",
            where=where,
            hint="behind `unet.` and `text_encoder.` stand the paths of diffusers and transformers",
        )
    return StageError(f"the name of tensor {shown(name)} is not understood", where=where)
