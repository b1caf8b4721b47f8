"""The linear head of LAION's aesthetic predictor, read from its published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import draft
from draft_rewards._loading import explained, hub_options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LAYERS = (0, 2, 4, 6, 7)
"""The linear layers among ``layers.0`` to ``layers.7``; the others are dropout and have no weights."""


def load_head(
    head: str, width: int, *, revision: str = "", device: torch.device, where: str
) -> Callable[[Tensor], Tensor]:
    """Load the head, whatever the widths of its layers.

    Args:
        head: A registered name, a folder, a file, a hub id, or a hub id and a file as ``"owner/name/file"``.
        width: Length of the vectors it will get.
        revision: A hub revision; empty: the pinned one, see `_loading.hub_options`.
        device: Where to put it.
        where: The reward's name, for errors.

    Returns:
        A function from float32 (B, width) to float32 (B,).

    Raises:
        DraftError: There is no such file, or it holds something else.
    """
    from torch.nn import functional as F

    with explained("aesthetic head", head, where=where, revision=revision):
        weights = _read(_find(head, revision))
        names = [f"layers.{number}.{kind}" for number in LAYERS for kind in ("weight", "bias")]
        if sorted(weights) != sorted(names):
            wrong = sorted(set(weights) ^ set(names))
            raise ValueError(f"its tensors must be layers.0, 2, 4, 6 and 7 with weight and bias (look at {wrong[0]!r})")
    tensors = {name: tensor.to(device=device).float().requires_grad_(False) for name, tensor in weights.items()}
    layers = [(tensors[f"layers.{number}.weight"], tensors[f"layers.{number}.bias"]) for number in LAYERS]
    if (expected := layers[0][0].shape[1]) != width:
        raise draft.DraftError(
            f"the head {head!r} wants vectors of length {expected}, and the CLIP gives {width}",
            where=where,
            hint="a head works with the CLIP it was trained on; LAION's is openai/clip-vit-large-patch14",
        )

    def rate(vectors: Tensor) -> Tensor:
        for weight, bias in layers:
            vectors = F.linear(vectors, weight, bias)
        return vectors[:, 0]

    return rate


def _find(head: str, revision: str) -> Path:
    from transformers.utils.hub import cached_file

    path = Path(draft.model_path(head))
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(file for kind in ("*.safetensors", "*.pth") for file in path.glob(kind))
        preferred = [file for file in files if file.name == "model.safetensors"] or files
        if len(preferred) != 1:
            raise ValueError(f"the folder must hold one .safetensors or .pth file (got {len(files)})")
        return preferred[0]
    owner, _, name_and_file = head.partition("/")
    name, _, file = name_and_file.partition("/")
    if path.is_absolute() or not (owner.strip(".") and name):
        raise ValueError("there is no such file or folder")
    return Path(str(cached_file(f"{owner}/{name}", file or "model.safetensors", **hub_options(revision, head))))


def _read(file: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        return load_file(file)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict):
        raise ValueError(f"it must hold a state dict (got {type(weights).__name__})")
    return weights
