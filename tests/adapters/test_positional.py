"""cloneofsimo's numbered tensors get the modules whose turn it is in the model's own order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from draft.adapters.files.formats import read_adapter
from draft.errors import StageError

CLASSES = {"plain": ["CrossAttention", "Attention", "GEGLU"], "extended": ["Attention", "GEGLU", "ResnetBlock2D"]}


def targets(model: torch.nn.Module, classes: list[str]) -> list[tuple[str, torch.nn.Module]]:
    """The layers that lora_diffusion's `_find_modules` finds, in its order: class by class, as the model walks."""
    found = []
    for path, ancestor in model.named_modules():
        if type(ancestor).__name__ in classes:
            found += [
                (f"{path}.{name}", layer)
                for name, layer in ancestor.named_modules()
                if type(layer) is torch.nn.Linear or ("ResnetBlock2D" in classes and type(layer) is torch.nn.Conv2d)
            ]
    return found


def numbered(part: str, layers: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Rank-one factors for layers of the given weight shapes; the number is in the first value of A."""
    tensors = {}
    for i, (rows, *columns) in enumerate(layers):
        down = torch.zeros(1, *columns)
        down.view(-1)[0] = i + 1
        tensors[f"{part}:{i}:down"] = down
        tensors[f"{part}:{i}:up"] = torch.ones(rows, 1, *([1, 1] if columns[1:] else []))
    return tensors


def read_order(tmp_path: Path, tensors: dict[str, torch.Tensor], header: dict[str, list[str]]) -> list[str]:
    metadata = {key: json.dumps(value) for key, value in header.items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    modules = read_adapter(tmp_path / "a.safetensors").modules
    return sorted(modules, key=lambda name: float(modules[name].down.flatten()[0]))


@pytest.mark.parametrize(("classes", "cross"), [("plain", 768), ("plain", 1024), ("extended", 768)])
def test_the_order_is_that_of_diffusers_own_unet(tmp_path: Path, classes: str, cross: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=cross)
    layers = targets(unet, CLASSES[classes])
    tensors = numbered("unet", [tuple(layer.weight.shape) for _, layer in layers])
    found = read_order(tmp_path, tensors, {"unet": CLASSES[classes]})
    assert found == [f"unet.{name}" for name, _ in layers]
    assert len(found) == (224 if classes == "extended" else 144)


def test_the_order_of_2022_had_the_feed_forward_between_the_attentions(tmp_path: Path) -> None:
    # Shapes of modules 0 to 8 as in the example files of https://github.com/cloneofsimo/lora.
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    layers = targets(unet, CLASSES["plain"])
    old = []
    for i in range(0, len(layers), 9):
        old += [*layers[i : i + 4], layers[i + 8], *layers[i + 4 : i + 8]]
    shapes = [tuple(layer.weight.shape) for _, layer in old]
    assert shapes[3:7] == [(320, 320), (2560, 320), (320, 320), (320, 768)]
    found = read_order(tmp_path, numbered("unet", shapes), {"unet": CLASSES["plain"]})
    assert found == [f"unet.{name}" for name, _ in old]


def test_the_text_encoder_s_order_is_that_of_transformers_own(tmp_path: Path) -> None:
    with torch.device("meta"):
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12))
    names = [name for name, _ in targets(clip, ["CLIPAttention"])]
    found = read_order(tmp_path, numbered("text_encoder", [(768, 768)] * 48), {"text_encoder": ["CLIPAttention"]})
    assert [name.removeprefix("text_encoder.text_model.") for name in found] == [
        name.removeprefix("text_model.") for name in names
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet:3:up": torch.ones(321, 1)}, "the 144 numbered modules of its unet are not those of Stable Diffusion"),
        ({"unet:144:up": torch.ones(4, 1), "unet:144:down": torch.ones(1, 4)}, "the 145 numbered modules"),
        ({"unet:200:up": torch.ones(4, 1)}, "unet:144 lacks its up or its down factor"),
        ({"<s1>": torch.ones(768)}, "'<s1>' is no numbered LoRA tensor but, it seems, an embedding"),
    ],
)
def test_what_does_not_fit_the_order_is_refused(tmp_path: Path, change: dict[str, torch.Tensor], message: str) -> None:
    with torch.device("meta"):
        layers = targets(UNet2DConditionModel(cross_attention_dim=768), CLASSES["plain"])
    tensors = numbered("unet", [tuple(layer.weight.shape) for _, layer in layers]) | change
    with pytest.raises(StageError) as error:
        read_order(tmp_path, tensors, {"unet": CLASSES["plain"]})
    assert message in str(error.value)


@pytest.mark.parametrize("classes", ["[", '"GEGLU"', '["Transformer2DModel"]'])
def test_a_header_without_known_classes_is_refused(tmp_path: Path, classes: str) -> None:
    save_file(numbered("unet", [(320, 320)]), tmp_path / "a.safetensors", metadata={"unet": classes})
    with pytest.raises(StageError, match=r"no JSON|no list of classes|are not those of Stable Diffusion"):
        read_adapter(tmp_path / "a.safetensors")
