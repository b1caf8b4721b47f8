"""The converter from open_clip's checkpoints: every tensor, every form of file, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

import draft
from draft_rewards import _open_clip


@pytest.fixture
def weights(
    hpsv2_recorded: dict[str, Any], hpsv2_small: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """A small checkpoint's tensors, with that size in the place of ViT-H-14's."""
    monkeypatch.setattr(_open_clip, "VIT_H_14", hpsv2_small.as_transformers(_open_clip.VIT_H_14))
    return hpsv2_small.checkpoint(hpsv2_recorded["shapes"])


def load(file: Path) -> Any:
    return _open_clip.load_open_clip(file, what="checkpoint", device=torch.device("cpu"), where="hpsv2")


def from_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back, written anew: the tensors of a `CLIPModel` as open_clip names and keeps them."""
    layer = r"(text|vision)_model\.encoder\.layers\.(\d+)\."
    names = [
        (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"text_model\.embeddings\.token_embedding", "token_embedding"),
        (r"text_model\.final_layer_norm", "ln_final"),
        (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
        (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
        (r"vision_model\.embeddings\.patch_embedding", "visual.conv1"),
        (r"vision_model\.pre_layrnorm", "visual.ln_pre"),
        (r"vision_model\.post_layernorm", "visual.ln_post"),
        (rf"{layer}", r"\1.transformer.resblocks.\2."),
        (r"^text\.", ""),
        (r"^vision\.", "visual."),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"self_attn\.out_proj", "attn.out_proj"),
        (r"self_attn\.q_proj\.(\w+)", r"attn.in_proj_\1"),
    ]
    back = {}
    for name, tensor in weights.items():
        if name in ("text_projection.weight", "visual_projection.weight"):
            back[{"t": "text_projection", "v": "visual.proj"}[name[0]]] = tensor.T
        elif not re.search(r"\.[kv]_proj\.", name):
            if ".q_proj." in name:
                tensor = torch.cat([weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
            for pattern, replacement in names:
                name = re.sub(pattern, replacement, name)
            back[name] = tensor
    return back


def test_every_tensor_of_a_checkpoint_is_in_the_model_and_comes_back(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"state_dict": weights}, tmp_path / "small.pt")
    model = load(tmp_path / "small.pt")
    back = from_transformers(model.state_dict())
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor.float()), name
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_full_size_has_the_names_and_shapes_of_open_clips(
    hpsv2_recorded: dict[str, Any], hpsv2_small: ModuleType
) -> None:
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**_open_clip.VIT_H_14))
    shapes = {name: tuple(tensor.shape) for name, tensor in from_transformers(model.state_dict()).items()}
    assert hpsv2_small.outline(shapes) == hpsv2_recorded["vit_h_14"]


@pytest.mark.parametrize(
    "form", ["half precision", "single precision", "the format before zip archives", "with other entries"]
)
def test_a_checkpoint_is_read_in_every_form(weights: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    content: dict[str, Any] = {"state_dict": dict(weights)}
    if form == "single precision":
        content["state_dict"] = {name: tensor.float() for name, tensor in weights.items()}
    if form == "with other entries":
        content["epoch"] = 3
    zipped = form != "the format before zip archives"
    torch.save(content, tmp_path / "small.pt", _use_new_zipfile_serialization=zipped)
    model = load(tmp_path / "small.pt")
    for name, weight in model.named_parameters():
        # One copy, which holds on to nothing larger, such as the file or another tensor.
        assert weight.is_contiguous() and weight.untyped_storage().nbytes() == 4 * weight.numel(), name
        assert weight.dtype == torch.float32
    back = from_transformers(model.state_dict())
    assert all(torch.equal(back[name], tensor.float()) for name, tensor in weights.items())


def test_anything_else_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "other.pt"

    def refused(content: Any, said: str) -> None:
        torch.save(content, file)
        with pytest.raises(draft.DraftError, match=said) as raised:
            load(file)
        assert raised.value.where == "hpsv2"

    less = {name: tensor for name, tensor in weights.items() if name != "visual.ln_post.bias"}
    refused({"state_dict": less}, r"whose vision_model.post_layernorm.bias has the shape \(32,\) \(got nothing\)")
    wider = {**weights, "visual.proj": torch.zeros(32, 25)}
    refused({"state_dict": wider}, r"visual_projection.weight has the shape \(24, 32\) \(got \(25, 32\)\)")
    deeper = {**weights, "transformer.resblocks.2.ln_1.bias": torch.zeros(16)}
    refused({"state_dict": deeper}, "has no text_model.encoder.layers.2.layer_norm1.bias")
    scaled = {**weights, "transformer.resblocks.0.ls_1.gamma": torch.zeros(16)}
    refused({"state_dict": scaled}, "has no 'transformer.resblocks.0.ls_1.gamma'")
    refused(dict(weights), r"a dict with tensors under 'state_dict' \(got the keys .*, ...\)")
    refused([1], r"under 'state_dict' \(got list\)")
    refused({"state_dict": {"a": 1}}, r"under 'state_dict' \(got the keys state_dict\)")
    refused({"state_dict": dict(weights), "module": torch.nn.Identity()}, "a pickle of more than weights")
    file.write_bytes(b"")
    with pytest.raises(draft.DraftError, match="not a file of weights alone"):
        load(file)
