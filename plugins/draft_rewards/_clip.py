"""A frozen CLIP in pure tensors: its two towers as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any

import draft
from draft.rewards.reading import ReadingScore
from draft_rewards._loading import NOTHING, TOKENS_AND_SIZES, explained, hub_options, load_frozen, load_tokenizer
from draft_rewards._preprocessing import Preprocessing, find_preprocessing
from draft_rewards._text import reading, text_vector

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.types import Images

ClipModel = Annotated[
    str, draft.Field(description="a CLIPModel of transformers: a name of `draft models`, a folder, or a hub id")
]
"""The option `model` of the rewards with a CLIP."""


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP.

    Args:
        model: The frozen `transformers.CLIPModel`, float32.
        tokenizer: Its tokenizer; None where no texts are read.
        preprocessing: Its image preprocessing.
    """

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing

    def image_features(self, images: Images) -> Tensor:
        """Unit vectors of images.

        Args:
            images: Float (B, 3, H, W) in [0, 1].

        Returns:
            Float32 (B, D), each of length 1; the gradient reaches the pixels.
        """
        from torch.nn import functional as F

        pixels = self.preprocessing(images.float())
        # The towers are called by hand: what `get_image_features` returns differs between transformers 4 and 5.
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def text_features(self, text: str) -> Tensor:
        """The unit vector of one text: float32 (D,), without a gradient."""
        return text_vector(self.model, self.tokenizer, text)


def load_clip(
    model: str,
    *,
    processor: str = "",
    revision: str = "",
    texts: bool = True,
    device: torch.device,
    where: str,
    others: Mapping[str, Sequence[str]] = NOTHING,
) -> Clip:
    """Load a CLIP of transformers from a registered name, a folder or the hub; safetensors only.

    Args:
        model: A name of `draft models`, a folder, or a hub id.
        processor: Where tokenizer and image preprocessing come from, likewise; empty: from `model`.
        revision: A hub revision of `model`; empty: the pinned one, see `_loading.hub_options`.
        texts: Whether texts will be read; without them no tokenizer is loaded.
        device: Where to put it.
        where: The reward's name, for errors.
        others: What else the reward will load, see `_loading.explained`.

    Returns:
        The model, frozen and in evaluation mode, with its tokenizer and preprocessing.

    Raises:
        DraftError: There is no such model here, or its weights are missing or of another architecture.
    """
    from transformers import CLIPModel

    others = {**others, processor: TOKENS_AND_SIZES}
    network = load_frozen(
        CLIPModel, model, revision=revision, device=device, what="CLIP model", where=where, others=others
    )
    source, meant = processor or model, "" if processor else revision
    path, options = draft.model_path(source), hub_options(meant, source)
    what, files = ("CLIP processor", TOKENS_AND_SIZES) if processor else ("CLIP model", ())
    with explained(what, source, where=where, revision=meant, files=files):
        preprocessing = find_preprocessing(path, options, kind="CLIP")
    tokenizer = load_tokenizer(source, revision=meant, what=what, where=where, files=files) if texts else None
    if preprocessing is None:
        side = network.config.vision_config.image_size
        preprocessing = Preprocessing(shortest_edge=side, cropped=(side, side))
    return Clip(network, tokenizer, preprocessing)


def cosines(clip: Clip, text: str) -> ReadingScore:
    """How alike images and texts are to a CLIP, every text encoded once.

    Args:
        clip: The CLIP.
        text: The option `text`: each image is compared with its own.

    Returns:
        A function from B images and prompts to float32 (B,) in [-1, 1]; the gradient reaches the pixels.
    """
    import torch

    limit = clip.model.config.text_config.max_position_embeddings

    vector = lru_cache(maxsize=8192)(clip.text_features)

    def compare(images: Images, prompts: Sequence[str]) -> Tensor:
        text_vectors = torch.stack([vector(one) for one in draft.per_prompt(text, prompts)])
        return (clip.image_features(images) * text_vectors).sum(dim=-1)

    return ReadingScore(compare, (reading(clip.tokenizer, limit, partial(draft.per_prompt, text)),))
