"""cloneofsimo's files, whose tensors are numbered: `unet:0:up` belongs to the first module in the model's own order.

Facts from https://github.com/cloneofsimo/lora (lora_diffusion/lora.py): the header lists the classes whose layers were
replaced, and the modules come as `model.modules()` of the Stable Diffusion 1 or 2 of its time walks them: down blocks,
up blocks, then the middle, attentions before resnets. Its transformer blocks had the feed-forward between the two
attentions; diffusers moved it behind them later. Both orders are tried, and every shape is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from draft.adapters.files.header import TensorInfo
from draft.errors import StageError

_NUMBERED = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
_ATTENTION = ("CrossAttention", "Attention")
_UNET_CLASSES = (*_ATTENTION, "GEGLU")
_OLD_ORDER, _NEW_ORDER = ("attn1", "ff", "attn2"), ("attn1", "attn2", "ff")

Slot = tuple[str, int, int]
"""A module's path, its inputs and its outputs."""


def is_positional(names: Mapping[str, TensorInfo]) -> bool:
    """Whether a file's tensors are numbered instead of named."""
    return any(is_numbered(name) for name in names)


def is_numbered(name: str) -> bool:
    """Whether one tensor is."""
    return _NUMBERED.fullmatch(name) is not None


def positional_modules(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], *, where: str
) -> dict[str, dict[str, TensorInfo]]:
    """Give numbered tensors the modules they belong to.

    Args:
        tensors: The file's tensors.
        metadata: The file's header.
        where: The file, for errors.

    Returns:
        Tensors by module path and role (`up`, `down`).

    Raises:
        StageError: Embeddings are bundled, or number, classes or shapes are not those of Stable Diffusion 1 or 2.
    """
    by_part: dict[str, dict[int, dict[str, TensorInfo]]] = {}
    for name, tensor in tensors.items():
        match = _NUMBERED.fullmatch(name)
        if match is None:
            raise StageError(
                f"{name!r} is no numbered LoRA tensor but, it seems, an embedding trained along with it",
                where=where,
                hint="save the LoRA without its embeddings; without them its words would mean nothing",
            )
        by_part.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
    grouped: dict[str, dict[str, TensorInfo]] = {}
    for part, numbered in by_part.items():
        classes = _classes(part, metadata, where=where)
        shapes = [_shape(part, numbered.get(i, {}), i, where=where) for i in range(len(numbered))]
        slots = _slots(part, classes, shapes)
        if slots is None:
            raise StageError(
                f"the {len(shapes)} numbered modules of its {part} are not those of Stable Diffusion 1 or 2 with "
                f"{', '.join(classes)}",
                where=where,
                hint="only their order identifies them, so nothing can be read if a shape disagrees",
            )
        for i, (path, _, _) in enumerate(slots):
            grouped[f"{part}.{path}"] = numbered[i]
    return grouped


def _classes(part: str, metadata: Mapping[str, str], *, where: str) -> list[str]:
    default = json.dumps(_UNET_CLASSES if part == "unet" else ["CLIPAttention"])
    try:
        classes = json.loads(metadata.get(part, default))
    except (ValueError, RecursionError) as error:
        raise StageError(f"its header's entry {part!r} is no JSON ({error})", where=where) from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise StageError(f"its header's entry {part!r} is no list of classes (got {classes!r:.80})", where=where)
    return sorted(classes)


def _shape(part: str, tensors: Mapping[str, TensorInfo], number: int, *, where: str) -> tuple[int, int]:
    if set(tensors) != {"up", "down"} or any(tensor.ndim < 2 for tensor in tensors.values()):
        raise StageError(f"{part}:{number} lacks its up or its down factor", where=where)
    return tensors["down"].shape[1], tensors["up"].shape[0]


def _slots(part: str, classes: list[str], shapes: list[tuple[int, int]]) -> list[Slot] | None:
    """The modules in their order, or None if no model has such shapes in such an order."""
    if part == "text_encoder":
        candidates = [list(_text(width, len(shapes) // 4)) for width in (768, 1024)]
        classes_fit = set(classes) == {"CLIPAttention"}
    else:
        candidates = [list(_unet(classes, cross, order)) for cross in (768, 1024) for order in (_OLD_ORDER, _NEW_ORDER)]
        classes_fit = set(classes) <= {*_UNET_CLASSES, "ResnetBlock2D"}
    return next((c for c in candidates if classes_fit and [slot[1:] for slot in c] == shapes), None)


def _text(width: int, layers: int) -> Iterator[Slot]:
    for layer in range(layers):
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield f"text_model.encoder.layers.{layer}.self_attn.{name}", width, width


def _unet(classes: list[str], cross: int, order: tuple[str, ...]) -> Iterator[Slot]:
    widths = (320, 640, 1280, 1280)
    for level, width in enumerate(widths):
        inputs = ((320, *widths)[level], width)
        yield from _block(f"down_blocks.{level}", inputs, width, classes, cross, order, attends=level < 3)
    skips = [320, 320, 320, 320, 640, 640, 640, *[1280] * 5]
    below = 1280
    for level, width in enumerate(reversed(widths)):
        inputs = (below + skips.pop(), width + skips.pop(), width + skips.pop())
        yield from _block(f"up_blocks.{level}", inputs, width, classes, cross, order, attends=level > 0)
        below = width
    yield from _block("mid_block", (1280, 1280), 1280, classes, cross, order, attends=True, attentions=1)


def _block(
    path: str,
    inputs: tuple[int, ...],
    width: int,
    classes: list[str],
    cross: int,
    order: tuple[str, ...],
    *,
    attends: bool,
    attentions: int | None = None,
) -> Iterator[Slot]:
    for i in range((attentions or len(inputs)) if attends else 0):
        for child in order:
            layers = _layers(child, width, cross, classes)
            block_path = f"{path}.attentions.{i}.transformer_blocks.0.{child}"
            yield from ((f"{block_path}.{name}", inner, outer) for name, inner, outer in layers)
    for i, width_in in enumerate(inputs if "ResnetBlock2D" in classes else ()):
        yield f"{path}.resnets.{i}.conv1", width_in, width
        yield f"{path}.resnets.{i}.time_emb_proj", 1280, width
        yield f"{path}.resnets.{i}.conv2", width, width
        if width_in != width:
            yield f"{path}.resnets.{i}.conv_shortcut", width_in, width


def _layers(child: str, width: int, cross: int, classes: list[str]) -> list[Slot]:
    if child == "ff":
        return [("net.0.proj", width, 8 * width)] if "GEGLU" in classes else []
    if not set(classes) & set(_ATTENTION):
        return []
    text = cross if child == "attn2" else width
    return [("to_q", width, width), ("to_k", text, width), ("to_v", text, width), ("to_out.0", width, width)]
