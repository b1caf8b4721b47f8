"""A frozen CLIP in pure tensors: differentiable preprocessing, and the two towers as functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import draft

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.types import Images


@dataclass(frozen=True)
class Preprocessing:
    """What CLIP's image processor does, read from its `preprocessor_config.json`; the defaults are OpenAI's.

    Args:
        shortest_edge: Length of the image's shorter side after resizing; 0: resize to `resized` whatever the shape.
        resized: Height and width after resizing where `shortest_edge` is 0; (0, 0): no resizing.
        cropped: Height and width of the central crop; (0, 0): no crop.
        mode: Interpolation, ``"bicubic"`` or ``"bilinear"``.
        mean: Subtracted per channel.
        std: Divided by per channel.
    """

    shortest_edge: int = 224
    resized: tuple[int, int] = (0, 0)
    cropped: tuple[int, int] = (224, 224)
    mode: str = "bicubic"
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __call__(self, images: Images) -> Tensor:
        """Resize with antialiasing, clamp to [0, 1], crop the centre, normalise.

        Args:
            images: Float (B, 3, H, W) in [0, 1], any H and W.

        Returns:
            Float (B, 3, H', W') as the image tower wants it; the gradient reaches every pixel that is used.
        """
        from torch.nn import functional as F

        height, width = images.shape[-2:]
        target = self.resized
        if self.shortest_edge:
            short, long = sorted((height, width))
            scaled = int(self.shortest_edge * long / short)
            target = (self.shortest_edge, scaled) if height <= width else (scaled, self.shortest_edge)
        if target != (0, 0) and target != (height, width):
            # As Pillow does, which CLIP was trained behind: rows, then columns, each clipped to the range of a pixel.
            for size in ((height, target[1]), target):
                images = F.interpolate(images, size=size, mode=self.mode, antialias=True).clamp(0, 1)
        if self.cropped != (0, 0):
            images = _centre_crop(images, self.cropped)
        shape = (1, -1, 1, 1)
        return (images - images.new_tensor(self.mean).view(shape)) / images.new_tensor(self.std).view(shape)


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP.

    Args:
        model: The frozen `transformers.CLIPModel`, float32.
        tokenizer: Its tokenizer.
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
        """The unit vector of one text, cut at the model's longest length.

        Args:
            text: One text. One at a time, so that its vector never depends on what else is in a batch.

        Returns:
            Float32 (D,), of length 1, without a gradient.
        """
        import torch
        from torch.nn import functional as F

        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
        device = self.model.device
        with torch.no_grad():
            pooled = self.model.text_model(
                input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
            ).pooler_output
            return F.normalize(self.model.text_projection(pooled).float(), dim=-1)[0]


def load_clip(model: str, *, revision: str = "", device: torch.device) -> Clip:
    """Load a CLIP of transformers from a registered name, a folder or the hub; safetensors only.

    Args:
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the newest.
        device: Where to put it.

    Returns:
        The model, frozen and in evaluation mode, with its tokenizer and preprocessing.

    Raises:
        DraftError: There is no such model here, or its weights are missing or of another architecture.
    """
    from transformers import AutoTokenizer, CLIPModel

    path = draft.model_path(model)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        loaded: Any = CLIPModel.from_pretrained(path, use_safetensors=True, output_loading_info=True, **options)
        network, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        preprocessing = _read_preprocessing(path, network.config.vision_config.image_size, options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise draft.DraftError(
            f"cannot load the CLIP model {model!r}: {reason}",
            where="clip_score",
            hint="give a name of `draft models`, a folder with a CLIPModel in safetensors, or a hub id you can reach",
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise draft.DraftError(
            f"the weights of {model!r} lack {len(missing)} of CLIP's tensors, e.g. {missing[0]!r}",
            where="clip_score",
            hint="the folder must hold a whole CLIPModel, text and image tower with their projections",
        )
    return Clip(network.to(device=device).float().eval().requires_grad_(False), tokenizer, preprocessing)


def cached_text_features(clip: Clip, *, size: int = 8192) -> Any:
    """`clip.text_features`, remembering the last `size` texts."""
    return lru_cache(maxsize=size)(clip.text_features)


def _read_preprocessing(path: str, image_size: int, options: Mapping[str, Any]) -> Preprocessing:
    from transformers.utils.hub import cached_file

    optional: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, **options}
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = cached_file(path, name, **optional)
        if file is not None:
            with open(file, encoding="utf-8") as stream:
                config = json.load(stream)
            return parse_preprocessing(config.get("image_processor", config))
    return Preprocessing(shortest_edge=image_size, cropped=(image_size, image_size))


def parse_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Read an image processor's configuration, in the old form (sizes as numbers) or the new one (as mappings).

    Args:
        config: The content of `preprocessor_config.json`.

    Returns:
        The preprocessing; what the file does not say is as OpenAI's.

    Raises:
        ValueError: The file asks for something CLIP's processor does not do.
    """
    default = Preprocessing()
    size: Any = config.get("size", default.shortest_edge)
    size = {"shortest_edge": size} if isinstance(size, int) else size
    shortest = int(size.get("shortest_edge", 0))
    resized = (0, 0) if shortest else _pair(size)
    cropped = _pair(config.get("crop_size", default.cropped[0]))
    modes = {2: "bilinear", 3: "bicubic"}
    if config.get("resample", 3) not in modes:
        raise ValueError(f"resample must be 2 (bilinear) or 3 (bicubic) (got {config['resample']!r})")
    normalised = config.get("do_normalize", True)
    return Preprocessing(
        shortest_edge=shortest if config.get("do_resize", True) else 0,
        resized=resized if config.get("do_resize", True) else (0, 0),
        cropped=cropped if config.get("do_center_crop", True) else (0, 0),
        mode=modes[config.get("resample", 3)],
        mean=tuple(config.get("image_mean", default.mean)) if normalised else (0.0, 0.0, 0.0),
        std=tuple(config.get("image_std", default.std)) if normalised else (1.0, 1.0, 1.0),
    )


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else (size["height"], size["width"])
    return int(height), int(width)


def _centre_crop(images: Tensor, cropped: tuple[int, int]) -> Tensor:
    from torch.nn import functional as F

    (height, width), (crop_height, crop_width) = images.shape[-2:], cropped
    if height < crop_height or width < crop_width:
        # As CLIP's processor does: an image smaller than the crop is framed in black.
        top, left = -((height - crop_height) // 2), -((width - crop_width) // 2)
        top, left = max(top, 0), max(left, 0)
        bottom, right = max(crop_height - height - top, 0), max(crop_width - width - left, 0)
        images = F.pad(images, (left, right, top, bottom))
        height, width = images.shape[-2:]
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return images[..., top : top + crop_height, left : left + crop_width]
