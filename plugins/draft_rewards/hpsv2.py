"""The reward `hpsv2`: how much people would prefer an image for its prompt, by the Human Preference Score v2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import draft
from draft.rewards.reading import ReadingScore
from draft.types import reads_prompt
from draft_rewards._loading import TOKENS_AND_SIZES, Revision, explained, hub_options, load_tokenizer
from draft_rewards._text import Text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.rewards.reward import Score
    from draft.types import Images, Scores
    from draft_rewards._clip import Clip

HUB = "xswu/HPSv2"
FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
"""The published checkpoints in the hub repository `HUB`."""

CHECKPOINT = "HPSv2 checkpoint"


class Hpsv2(draft.Reward):
    """How much people would prefer an image for its prompt: the Human Preference Score v2, without CLIP's scale.

    r(x, c) = cos(image(x), text(c)) with a ViT-H-14 of open_clip that learned which of two images people liked better.
    Papers often print 100 times the score. The two versions are two models, and their scores do not compare. Of a
    prompt it reads 77 tokens, about 50 words, and no more.

    The image is resized until its longer side is the model's, 224 pixels, and framed in black to a square, so that
    nothing of it is cut off.

    Note:
        The published code leaves antialiasing to torchvision, which began with it in version 0.17: the same code
        gives other scores before and after, and `antialias: false` is before. On a GPU it computes in half precision,
        in which scores are multiples of 0.00012 or 0.00024; here all is float32. It fails where the longer side is
        224 and the shorter one is not; here such an image is framed like any other.
    """

    name = "hpsv2"
    cite = "Wu et al., Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences, arXiv 2306.09341"
    licence = "model: Apache-2.0; processor: MIT"
    typical = (
        "models' averages on the published benchmark are 0.23 to 0.29 with v2.0 and 0.13 to 0.34 with v2.1; only the "
        "difference between images for one prompt means anything"
    )
    memory = "3.9 GB of weights: 986 M parameters in float32"
    stand_in = {"model": "emoji/preference", "revision": "", "processor": ""}

    model: str = draft.Field(
        HUB,
        description="the weights: a hub id or a folder with the published checkpoints, one of these .pt files, or a "
        "CLIPModel of transformers as a name of `draft models`, a folder, or a hub id",
    )
    version: Literal["v2.0", "v2.1"] = draft.Field(
        "v2.1", description="which of the published checkpoints; a CLIPModel has no version"
    )
    revision: Revision = ""
    processor: str = draft.Field(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        description="where the tokenizer comes from: a name of `draft models`, a folder, or a hub id; with a CLIPModel "
        "also mean and deviation of the colours; empty: from `model`, where that is a CLIPModel",
    )
    antialias: bool = draft.Field(
        True, description="resize with antialiasing, as the published code does with torchvision 0.17 and later"
    )
    text: Text = "{prompt}"

    @property
    def uses_prompt(self) -> bool:
        """Whether `text` comes from the prompts."""
        return reads_prompt(self.text)

    def load(self, device: torch.device) -> Score:
        """Load the CLIP.

        Args:
            device: Where the images will be.

        Returns:
            A function from images and prompts to scores.
        """
        from draft_rewards._clip import cosines

        clip = self._clip(device)
        side, cosine = clip.model.config.vision_config.image_size, cosines(clip, self.text)

        def score(images: Images, prompts: Sequence[str]) -> Scores:
            framed = fit_longest_side(images.float(), side, antialias=self.antialias)
            return cosine(framed, prompts).to(images.dtype)

        return ReadingScore(score, cosine.readings)

    def _clip(self, device: torch.device) -> Clip:
        from draft_rewards._clip import Clip, load_clip
        from draft_rewards._open_clip import load_open_clip, with_clean_texts
        from draft_rewards._preprocessing import Preprocessing

        file = self._checkpoint()
        if file is None:
            clip = load_clip(
                self.model, processor=self.processor, revision=self.revision, device=device, where=self.name
            )
            return _framed(Clip(clip.model, with_clean_texts(clip.tokenizer), clip.preprocessing))
        if not self.processor:
            raise draft.DraftError(
                "a checkpoint holds no tokenizer, so `processor` must not be empty (got '')",
                where=self.name,
                hint=f"leave `processor` out, or give a folder with CLIP's tokenizer; `model` is {self.model!r}",
            )
        tokenizer = load_tokenizer(self.processor, what="CLIP tokenizer", where=self.name, files=TOKENS_AND_SIZES)
        network = load_open_clip(file, what=CHECKPOINT, device=device, where=self.name)
        return _framed(Clip(network, with_clean_texts(tokenizer), Preprocessing()))

    def _checkpoint(self) -> Path | None:
        """The file to read in open_clip's layout; None where `model` is a CLIPModel of transformers."""
        from transformers.utils.hub import cached_file

        path, wanted = Path(draft.model_path(self.model)), FILES[self.version]
        if path.is_file():
            for version, published in FILES.items():
                if path.name == published != wanted:
                    raise draft.DraftError(
                        f"the file {path.name!r} is HPS {version} (got version {self.version!r})",
                        where=self.name,
                        hint=f"write `version: {version}`, or give the file {wanted!r}",
                    )
            return path
        if path.is_dir():
            return path / wanted if (path / wanted).is_file() else None
        options, others = hub_options(self.revision, self.model), {self.processor: TOKENS_AND_SIZES}
        if self.model == HUB:
            with explained(CHECKPOINT, f"{HUB}/{wanted}", where=self.name, revision=self.revision, others=others):
                return Path(str(cached_file(HUB, wanted, **options)))
        with explained("HPSv2 model", self.model, where=self.name, revision=self.revision, others=others):
            if path.is_absolute() or self.model.startswith(".") or self.model.count("/") > 1:
                raise ValueError("there is no such file or folder")
            file = cached_file(self.model, wanted, _raise_exceptions_for_missing_entries=False, **options)
        return Path(str(file)) if file else None


def _framed(clip: Clip) -> Clip:
    # Images come in framed to a square of the model's side, so all that is left of its preprocessing is to normalise.
    side = clip.model.config.vision_config.image_size
    preprocessing = replace(clip.preprocessing, squared=False, shortest_edge=side, resized=(0, 0), cropped=(side, side))
    return replace(clip, preprocessing=preprocessing)


def fit_longest_side(images: Tensor, side: int, *, antialias: bool) -> Tensor:
    """Resize images until they just fit into a square, and frame them in black.

    The published transform (https://github.com/tgxs002/HPSv2, `ResizeMaxSize`, 866735e) resizes tensors, not pictures
    of 8 bits, so that bicubic interpolation may leave [0, 1] and nothing is rounded or clipped.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        side: Length of the square's sides.
        antialias: Whether to blur what is made smaller before it is sampled.

    Returns:
        Float (B, 3, side, side); where a side is odd, the wider bar is on the right or at the bottom.
    """
    from torch.nn import functional as F

    height, width = images.shape[-2:]
    scale = side / max(height, width)
    target = max(round(height * scale), 1), max(round(width * scale), 1)
    if target != (height, width):
        images = F.interpolate(images, size=target, mode="bicubic", antialias=antialias)
    down, across = side - target[0], side - target[1]
    return F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))


@draft.hookimpl
def draft_rewards() -> list[type[draft.Reward]]:
    """The rewards of this module."""
    return [Hpsv2]
