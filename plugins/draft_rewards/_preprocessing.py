"""What published image processors do to an image, in tensors, so that the gradient reaches its pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from draft.types import Images

_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CROP = {"do_center_crop": True, "crop_size": 224}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIP": {"size": {"shortest_edge": 224}, "resample": 3, **_CROP, **_CLIP},
    "Bit": {"size": {"shortest_edge": 224}, "resample": 3, **_CROP, **_CLIP},
    "Blip": {"size": {"height": 384, "width": 384}, "resample": 3, **_CLIP},
    "ConvNext": {"size": {"shortest_edge": 384}, "resample": 3, "crop_pct": 224 / 256, **_HALF},
    "DeiT": {"size": {"height": 256, "width": 256}, "resample": 3, **_CROP, **_HALF},
    "EfficientNet": {"size": {"height": 346, "width": 346}, "resample": 3, "include_top": True, **_HALF},
    "MobileNetV1": {"size": {"shortest_edge": 256}, "resample": 2, **_CROP, **_HALF},
    "MobileNetV2": {"size": {"shortest_edge": 256}, "resample": 2, **_CROP, **_HALF},
    "OwlViT": {"size": {"height": 768, "width": 768}, "resample": 3, "crop_size": 768, **_CLIP},
    "Owlv2": {"size": {"height": 960, "width": 960}, "resample": 2, **_CLIP},
    "Siglip": {"size": {"height": 224, "width": 224}, "resample": 3, **_HALF},
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2, **_HALF},
}
"""The image processors of transformers that are known here, with what theirs do where a file does not say."""

_MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """What an image processor does; the defaults are those of OpenAI's CLIP.

    Args:
        squared: Whether the image is first made square by black pixels at the bottom or on the right.
        shortest_edge: Length of the image's shorter side after resizing; 0: resize to `resized` whatever the shape.
        resized: Height and width after resizing where `shortest_edge` is 0; (0, 0): no resizing.
        cropped: Height and width of the central crop; (0, 0): no crop.
        mode: ``"bicubic"``, ``"bilinear"`` or ``"nearest-exact"``, as Pillow does them; ``"blurred"``: linear
            interpolation after a Gaussian blur, as scikit-image and OWLv2 do it.
        mean: Subtracted per channel.
        std: Divided by per channel.
    """

    squared: bool = False
    shortest_edge: int = 224
    resized: tuple[int, int] = (0, 0)
    cropped: tuple[int, int] = (224, 224)
    mode: str = "bicubic"
    mean: tuple[float, ...] = _CLIP["image_mean"]
    std: tuple[float, ...] = _CLIP["image_std"]

    def __call__(self, images: Images) -> Tensor:
        """Resize with antialiasing, clamp to [0, 1], crop the centre, normalise.

        Args:
            images: Float (B, 3, H, W) in [0, 1], any H and W.

        Returns:
            Float (B, 3, H', W') as the network wants it; the gradient reaches every pixel that is used.
        """
        from torch.nn import functional as F

        if self.squared:
            height, width = images.shape[-2:]
            side = max(height, width)
            # Black as in OWLv2's own code; transformers 4 had grey here, until its pull request 41938.
            images = F.pad(images, (0, side - width, 0, side - height))
        height, width = images.shape[-2:]
        target = self.resized
        if self.shortest_edge:
            short, long = sorted((height, width))
            scaled = int(self.shortest_edge * long / short)
            target = (self.shortest_edge, scaled) if height <= width else (scaled, self.shortest_edge)
        if target not in ((0, 0), (height, width)):
            images = _resize(images, target, self.mode)
        if self.cropped != (0, 0):
            images = _centre_crop(images, self.cropped)
        shape = (1, -1, 1, 1)
        return (images - images.new_tensor(self.mean).view(shape)) / images.new_tensor(self.std).view(shape)


def read_preprocessing(path: str, options: Mapping[str, Any], *, kind: str = "") -> Preprocessing:
    """Read the preprocessing of a model's folder or hub repository.

    Args:
        path: A folder, or a hub id.
        options: Further arguments of transformers' `cached_file`, e.g. ``revision``.
        kind: The image processor where the file does not name one, e.g. ``"CLIP"``.

    Returns:
        The preprocessing.

    Raises:
        ValueError: There is no such file, or it asks for what is not done here.
    """
    preprocessing = find_preprocessing(path, options, kind=kind)
    if preprocessing is None:
        raise ValueError("it has no preprocessor_config.json")
    return preprocessing


def find_preprocessing(path: str, options: Mapping[str, Any], *, kind: str = "") -> Preprocessing | None:
    """Read the same as `read_preprocessing`; None where there is no such file."""
    from transformers.utils.hub import cached_file

    optional: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, **options}
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = cached_file(path, name, **optional)
        if file is not None:
            with open(file, encoding="utf-8") as stream:
                config = json.load(stream)
            return parse_preprocessing(config.get("image_processor", config), kind=kind)
    return None


def parse_preprocessing(config: Mapping[str, Any], *, kind: str = "") -> Preprocessing:
    """Read an image processor's configuration, in the old form (sizes as numbers) or the new one (as mappings).

    Args:
        config: The content of `preprocessor_config.json`.
        kind: The image processor where the file does not name one, e.g. ``"CLIP"``.

    Returns:
        The preprocessing; what the file does not say is as that processor has it in transformers.

    Raises:
        ValueError: The file names a processor that is not known here, or asks for something else than it does.
    """
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or kind
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named)
    if kind not in _PROCESSORS:
        known = ", ".join(sorted(_PROCESSORS))
        raise ValueError(f"its image processor must be one of {known} (got {named or 'none'!r})")
    configured = {key: value for key, value in config.items() if value is not None}
    full = {"do_resize": True, "do_normalize": True, "do_center_crop": False, **_PROCESSORS[kind], **configured}
    if full["resample"] not in _MODES:
        raise ValueError(f"resample must be 0 (nearest), 2 (bilinear) or 3 (bicubic) (got {full['resample']!r})")
    scale = full.get("rescale_factor", 1 / 255)
    if not full.get("do_rescale", True) or full.get("rescale_offset") or abs(scale * 255 - 1) > 1e-6:
        raise ValueError(f"pixels must be rescaled by 1/255 to [0, 1] (got {scale!r})")
    shortest, resized = _sizes(full["size"], _PROCESSORS[kind]["size"])
    cropped = _pair(full["crop_size"]) if full["do_center_crop"] else (0, 0)
    if kind == "ConvNext" and shortest >= 384:
        # Large images are warped to a square, small ones are cropped out of somewhat larger ones.
        shortest, resized = 0, (shortest, shortest)
    elif kind == "ConvNext":
        shortest, cropped = int(shortest / full["crop_pct"]), (shortest, shortest)
    std = tuple(full["image_std"]) if full["do_normalize"] else (1.0, 1.0, 1.0)
    if full.get("include_top"):
        # EfficientNet divides by it twice.
        std = tuple(once * again for once, again in zip(std, full["image_std"], strict=True))
    return Preprocessing(
        squared=kind == "Owlv2" and full.get("do_pad", True),
        shortest_edge=shortest if full["do_resize"] else 0,
        resized=resized if full["do_resize"] else (0, 0),
        cropped=cropped,
        mode="blurred" if kind == "Owlv2" else _MODES[full["resample"]],
        mean=tuple(full["image_mean"]) if full["do_normalize"] else (0.0, 0.0, 0.0),
        std=std,
    )


def _sizes(size: Any, default: Mapping[str, int]) -> tuple[int, tuple[int, int]]:
    # One number means the shorter side to some processors and a square to others.
    if isinstance(size, int) and "shortest_edge" in default:
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"]), (0, 0)
    return 0, _pair(size)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _resize(images: Tensor, target: tuple[int, int], mode: str) -> Tensor:
    from torch.nn import functional as F

    height, width = images.shape[-2:]
    if mode == "blurred":
        rows, columns = (_blurred_rows(old, new).to(images) for old, new in zip((height, width), target, strict=True))
        return rows @ images @ columns.T
    if mode == "nearest-exact":
        return F.interpolate(images, size=target, mode=mode)
    # As Pillow did when the networks were trained: along the rows, then the columns, each clipped to a pixel's range.
    for size in ((height, target[1]), target):
        images = F.interpolate(images, size=size, mode=mode, antialias=True).clamp(0, 1)
    return images


@lru_cache(maxsize=8)
def _blurred_rows(old: int, new: int) -> Tensor:
    """How scikit-image resizes one axis of `old` pixels to `new`, as a matrix: float64 (new, old).

    Blur with a Gaussian of sigma = max(0, (old / new - 1) / 2), cut at four of them, then interpolate linearly
    between pixel centres; beyond the edges the image is mirrored, the outermost pixel being the mirror.
    """
    import torch

    def mirrored(index: Tensor) -> Tensor:
        period = max(2 * (old - 1), 1)
        folded = index % period
        return torch.minimum(folded, period - folded) if old > 1 else torch.zeros_like(index)

    factor = old / new
    sigma = max(0.0, (factor - 1) / 2)
    offsets = torch.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2) if sigma else torch.ones(1, dtype=torch.float64)
    pixels = torch.arange(old)
    blur = torch.zeros(old, old, dtype=torch.float64)
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        blur.index_put_((pixels, mirrored(pixels + offset)), weight, accumulate=True)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * factor - 0.5
    left = centres.floor().long()
    share = centres - left
    linear = torch.zeros(new, old, dtype=torch.float64)
    linear.index_put_((torch.arange(new), mirrored(left)), 1 - share, accumulate=True)
    linear.index_put_((torch.arange(new), mirrored(left + 1)), share, accumulate=True)
    return linear @ blur


def _centre_crop(images: Tensor, cropped: tuple[int, int]) -> Tensor:
    from torch.nn import functional as F

    (height, width), (crop_height, crop_width) = images.shape[-2:], cropped
    if height < crop_height or width < crop_width:
        # As the processors do: an image smaller than the crop is framed in black.
        top, left = -((height - crop_height) // 2), -((width - crop_width) // 2)
        top, left = max(top, 0), max(left, 0)
        bottom, right = max(crop_height - height - top, 0), max(crop_width - width - left, 0)
        images = F.pad(images, (left, right, top, bottom))
        height, width = images.shape[-2:]
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return images[..., top : top + crop_height, left : left + crop_width]
