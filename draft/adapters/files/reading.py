"""From a file's tensors to the factors of its modules; whatever is no B A is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from draft.adapters.changes import Dora, FileChange, inputs_of, outputs_of
from draft.adapters.factors import Factors, all_finite, trim_rank
from draft.adapters.files.config import Alphas
from draft.adapters.files.header import TensorInfo
from draft.adapters.files.lycoris import is_lycoris, lycoris_change, with_core
from draft.adapters.files.skipping import named_by
from draft.adapters.skipped import Skipped
from draft.adapters.structured import Structured
from draft.errors import StageError


def readable_changes(
    grouped: Mapping[str, Mapping[str, TensorInfo]],
    tensors: Mapping[str, Tensor],
    alphas: Alphas,
    patterns: Sequence[str],
    *,
    where: str,
) -> tuple[dict[str, FileChange], tuple[Skipped, ...]]:
    """The changes of modules, without those whose numbers cannot be read and that a pattern names.

    Args:
        grouped: Tensors by module path and role, as the header has them.
        tensors: By name.
        alphas: What the file says about alpha elsewhere.
        patterns: As in `without_unreadable`.
        where: The file, for errors.

    Returns:
        Changes by module path, and what was left out.

    Raises:
        StageError: A module's numbers cannot be read, as in `module_change`, or no module is left.
    """
    changes: dict[str, FileChange] = {}
    skipped: list[Skipped] = []
    for module, parts in sorted(grouped.items()):
        names = [info.name for info in parts.values()]
        try:
            changes[module] = module_change(
                module, {role: tensors[info.name] for role, info in parts.items()}, alphas, where=where
            )
        except StageError as error:
            pattern = named_by((module, module.partition(".")[2], *names), patterns)
            if pattern is None:
                raise
            skipped += [Skipped(name, error.what, pattern) for name in names]
    if not changes:
        raise StageError(f"nothing is left of the file: all {len(grouped)} modules are skipped", where=where)
    return changes, tuple(skipped)


def module_change(name: str, parts: Mapping[str, Tensor], alphas: Alphas, *, where: str) -> FileChange:
    """One module's change out of its tensors.

    Args:
        name: The module's path.
        parts: Its tensors by role, as `draft.adapters.files.grouping` has checked them.
        alphas: What the file says about alpha elsewhere.
        where: The file, for errors.

    Returns:
        Factors without terms that are zero on both sides, a LoHa or LoKr, or a DoRA of one of these.

    Raises:
        StageError: Numbers are not finite, a LoHa or LoKr is incomplete, or magnitudes are not as many as rows or
            columns.
    """
    magnitudes = {role: part for role, part in parts.items() if role in _MAGNITUDES}
    if magnitudes:
        plain = {role: part for role, part in parts.items() if role not in magnitudes}
        return _dora(name, module_change(name, plain, alphas, where=where), magnitudes, where)
    for role, part in parts.items():
        if role != "alpha" and not all_finite(part):
            raise StageError(f"{name} has NaN or infinite values", where=where)
    alpha = _alpha(name, parts, where)
    factors = {role: part for role, part in parts.items() if role != "alpha"}
    if is_lycoris(factors):
        return lycoris_change(name, factors, alpha, where=where)
    down, up, stored = parts["down"], parts["up"], None
    if "mid" in parts:
        stored = reduce(torch.promote_types, [part.dtype for part in factors.values()])
        down = with_core(down, parts["mid"])
    rank = down.shape[0]
    scale = alphas.scale(name, rank) if alpha is None else alpha / rank
    return Factors(*trim_rank(down, up), scale, stored)


def _dora(name: str, inner: FileChange, magnitudes: Mapping[str, Tensor], where: str) -> Dora:
    role, magnitude = next(iter(magnitudes.items()))
    if len(magnitudes) > 1 or isinstance(inner, Dora):
        raise StageError(f"{name} has magnitudes twice", where=where)
    if not all_finite(magnitude):
        raise StageError(f"{name} has NaN or infinite values", where=where)
    outputs, inputs, shape = outputs_of(inner), inputs_of(inner)[0], tuple(magnitude.shape)
    if magnitude.numel() == outputs and (role == "lora_magnitude_vector" or shape[:1] == (outputs,)):
        return Dora(inner, magnitude.flatten(), "outputs")
    if role == "dora_scale" and magnitude.numel() == inputs and shape[:2] == (1, inputs):
        return Dora(inner, magnitude.flatten(), "inputs")
    raise StageError(
        f"the magnitudes of {name} must be {outputs}, one for each output (got shape {shape})", where=where
    )


_MAGNITUDES = ("dora_scale", "lora_magnitude_vector")
# Modules whose inputs are as wide as the text that the UNet attends to.
_OF_TEXT = re.compile(r"unet\..*\.attn2\.to_[kv]|text_encoder\..*\.self_attn\.(?:q|k|v|out)_proj")


def with_kernels(modules: Mapping[str, FileChange], family: str) -> dict[str, FileChange]:
    """Give a UNet's convolutions the shape of convolutions where a file has them flat, and its linear layers theirs.

    LyCORIS' convolutions are flat; some of kohya's files have 1x1 convolutions for the projections of Stable Diffusion
    2 and XL, which are linear layers there.

    Args:
        modules: Changes by path.
        family: The adapter's family.

    Returns:
        The same changes, the factors of a convolution as (r, in, k, k) and (out, r, 1, 1).
    """
    cross = max((inputs_of(change)[0] for name, change in modules.items() if _OF_TEXT.fullmatch(name)), default=0)
    shaped: dict[str, FileChange] = {}
    for name, whole in modules.items():
        change = whole.inner if isinstance(whole, Dora) else whole
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
        shaped[name] = replace(whole, inner=change) if isinstance(whole, Dora) else change
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
    if not math.isfinite(float(alpha)):
        raise StageError(f"the alpha of {name} must be one finite number (got {float(alpha)})", where=where)
    return float(alpha)
