"""Tiny networks with random weights, a byte-level tokenizer and test images, written as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

BEFORE_5 = int(transformers.__version__.partition(".")[0]) < 5
IMAGE_SIZE = 24
ALPHABET = [chr(c) for c in range(33, 127)]
TOKENS = [*ALPHABET, *(f"{c}</w>" for c in ALPHABET), "<|startoftext|>", "<|endoftext|>"]
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 16,
    "bos_token_id": len(TOKENS) - 2,
    "eos_token_id": len(TOKENS) - 1,
}
COLOURS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
LABELS = (
    "tench, Tinca tinca",
    "goldfish, Carassius auratus",
    "crane",
    "tiger cat",
    "crane",
    "Cardigan, corgi",
    "cardigan",
)


def published(name: str, **options: Any) -> Any:
    """An image processor of transformers, the variant of it that needs no torchvision."""
    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    return kind(**options)


def pixels(processor: Any, images: list[torch.Tensor]) -> torch.Tensor:
    """What a published processor makes of uint8 images (3, H, W)."""
    # Version 4 guesses where the channels are, and takes one row of 50 pixels for 50 columns of 1.
    options = {"input_data_format": "channels_last"} if BEFORE_5 else {}
    inputs = processor(images=pictures(images, processor), return_tensors="pt", **options)
    return torch.as_tensor(inputs["pixel_values"]).float()


def pictures(images: list[torch.Tensor], processor: Any = None) -> list[Image.Image]:
    """Pillow's images of uint8 tensors (3, H, W), made square for the processor that pads them otherwise.

    OWLv2's processor of transformers 4 pads with grey, that of 5 with black like OWLv2's own code.
    """
    if BEFORE_5 and isinstance(processor, transformers.Owlv2ImageProcessor) and processor.do_pad:
        sides = [max(image.shape[1:]) for image in images]
        images = [
            torch.nn.functional.pad(image, (0, side - image.shape[2], 0, side - image.shape[1]))
            for image, side in zip(images, sides, strict=True)
        ]
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def levels(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth random picture in whole 8-bit levels, which both sides see exactly alike: uint8 (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    return (fine * 255).round().to(torch.uint8)


def save_clip(folder: Path) -> Path:
    """Write a CLIPModel of about 30 k parameters, its tokenizer and its image processor's configuration."""
    config = transformers.CLIPConfig(
        text_config={**TOWER, **TEXT},
        vision_config={**TOWER, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=16,
    )
    _save(folder, lambda: transformers.CLIPModel(config))
    _save_tokenizer(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "size": {"shortest_edge": IMAGE_SIZE},
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        **COLOURS,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def save_owl(folder: Path, kind: str) -> Path:
    """Write an OWL-ViT ("OwlViT") or OWLv2 ("Owlv2") with 9 boxes, its tokenizer and its image processor."""
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TOWER, **TEXT, "pad_token_id": 0},
        vision_config={**TOWER, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=32,
    )

    def make() -> Any:
        model = getattr(transformers, f"{kind}ForObjectDetection")(config)
        # logit = (cosine + shift) * (elu(scale) + 1) = 8 * cosine - 4
        for linear, value in ((model.class_head.logit_shift, -0.5), (model.class_head.logit_scale, 7.0)):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.constant_(linear.bias, value)
        return model

    _save(folder, make)
    _save_tokenizer(folder)
    published(kind, size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, **COLOURS).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, kind: str) -> Path:
    """Write a small ResNet, ConvNeXt or ViT ("ResNet", "ConvNext", "ViT") of seven classes and its image processor."""
    labels = {"id2label": dict(enumerate(LABELS)), "num_labels": len(LABELS)}
    options: dict[str, dict[str, Any]] = {
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0},
        "ViT": {**TOWER, "image_size": IMAGE_SIZE, "patch_size": 8},
    }
    config = getattr(transformers, f"{kind}Config")(**options[kind], **labels)
    # A ResNet has no layer that would undo a larger scale.
    scale = 1.0 if kind == "ResNet" else 4.0
    _save(folder, lambda: getattr(transformers, f"{kind}ForImageClassification")(config), scale)
    square, short = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, {"shortest_edge": IMAGE_SIZE}
    processor = published("ViT", size=square) if kind == "ViT" else published("ConvNext", size=short, **COLOURS)
    processor.save_pretrained(folder)
    return folder


def save_head(folder: Path, width: int = 16, *, name: str = "model.safetensors") -> Path:
    """Write the weights of a small aesthetic head and return the file."""
    from safetensors.torch import save_file

    generator, widths = torch.Generator().manual_seed(0), (width, 12, 8, 6, 4, 1)
    weights = {}
    for number, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        weights[f"layers.{number}.weight"] = torch.randn(after, before, generator=generator)
        weights[f"layers.{number}.bias"] = torch.randn(after, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".pth"):
        torch.save(weights, folder / name)
    else:
        save_file(weights, folder / name)
    return folder / name


def _save_tokenizer(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    # OWL-ViT's tokenizer pads with token 0, which is "!".
    transformers.CLIPTokenizer(*files, pad_token="!", model_max_length=16).save_pretrained(folder)


def _save(folder: Path, make: Callable[[], Any], scale: float = 1.5) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            # Fresh networks are nearly constant functions; larger weights make images and texts differ.
            for name, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.mul_(scale if "embed" not in name else 5 * scale)
    model.save_pretrained(folder)
