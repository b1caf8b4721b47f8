"""LoRA files of families that are not read are refused by name, and impossible modules of those that are."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from draft.adapters.files.formats import read_adapter
from draft.adapters.files.other_families import named_in
from draft.diffusion.families import FAMILIES
from draft.errors import StageError

ROOT = Path(__file__).parents[2]
KLEIN: dict[str, Any] = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
}
MODELS = {
    "FLUX.2": ("Flux2Transformer2DModel", KLEIN),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}),
    "Wan": ("WanTransformer3DModel", {}),
    "Z-Image": ("ZImageTransformer2DModel", {}),
    "LTX-Video": ("LTXVideoTransformer3DModel", {}),
    "Sana": ("SanaTransformer2DModel", {}),
    "Lumina 2": ("Lumina2Transformer2DModel", {}),
}
Shapes = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def layers() -> dict[str, Shapes]:
    """The linear layers of every model, (out, in), from diffusers' own classes."""
    found: dict[str, Shapes] = {}
    for title, (name, settings) in {**MODELS, "FLUX.1": ("FluxTransformer2DModel", {})}.items():
        if not hasattr(diffusers, name):  # an earlier version
            continue
        with torch.device("meta"):
            model = getattr(diffusers, name)(**settings)
        linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
        found[title] = {name: (layer.out_features, layer.in_features) for name, layer in linear.items()}
    return found


def write(path: Path, shapes: Shapes, names: str, metadata: dict[str, str] | None = None) -> Path:
    """A LoRA of rank 1 under diffusers' names, ComfyUI's, bare ones or kohya's."""
    tensors = {}
    for name, (rows, columns) in shapes.items():
        if names == "kohya":
            key, down, up = f"lora_unet_{name.replace('.', '_')}", "lora_down", "lora_up"
        else:
            key, down, up = f"{names}{name}", "lora_A", "lora_B"
        tensors |= {f"{key}.{down}.weight": torch.ones(1, columns), f"{key}.{up}.weight": torch.ones(rows, 1)}
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def attention(shapes: Shapes, most: int = 10**6) -> Shapes:
    """The attention layers of the first blocks."""
    chosen = {}
    for name, shape in shapes.items():
        number = re.search(r"\.(\d+)\.", name)
        if re.search(r"\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$", name) and number and int(number[1]) < most:
            chosen[name] = shape
    return chosen


@pytest.mark.parametrize("names", ["transformer.", "diffusion_model.", "", "kohya"])
@pytest.mark.parametrize("title", list(MODELS))
def test_a_file_of_a_family_that_is_not_read_is_named(
    tmp_path: Path, layers: dict[str, Shapes], title: str, names: str
) -> None:
    if title not in layers:
        pytest.skip(f"diffusers {diffusers.__version__} has no {title}")
    # The attention of FLUX.2's double blocks is that of FLUX.1's: only a header tells them apart.
    for shapes in [layers[title], *([] if title == "FLUX.2" else [attention(layers[title])])]:
        with pytest.raises(StageError, match=re.escape(f"a LoRA of {title}, ")) as error:
            read_adapter(write(tmp_path / "a.safetensors", shapes, names))
        assert error.value.hint.startswith("LoRA files of Stable Diffusion")


HEADERS = {
    "FLUX.2": [{"modelspec.architecture": "flux-2-klein/lora"}, {"ss_base_model_version": "flux2_klein_4b"}],
    "HunyuanVideo": [{"modelspec.architecture": "hunyuan-video/lora"}, {"modelspec.architecture": "framepack/lora"}],
    "Qwen-Image": [{"modelspec.architecture": "Qwen-Image-Edit/lora"}, {"ss_base_model_version": "qwen_image"}],
    "Chroma": [{"modelspec.architecture": "chroma/lora"}],
}


@pytest.mark.parametrize("names", ["transformer.", "kohya"])
@pytest.mark.parametrize("title", ["FLUX.2", "HunyuanVideo", "Qwen-Image", "Chroma"])
def test_attention_layers_alone_are_of_the_family_that_the_header_names(
    tmp_path: Path, layers: dict[str, Shapes], title: str, names: str
) -> None:
    # These have the names and shapes of FLUX.1's: without a header nothing tells them apart.
    shapes = attention({n: s for n, s in layers["FLUX.1"].items() if n.startswith("transformer_blocks.")}, most=4)
    assert read_adapter(write(tmp_path / "a.safetensors", shapes, names)).family == "flux"
    for metadata in HEADERS[title]:
        with pytest.raises(StageError, match=f"a LoRA of {title}, .*{next(iter(metadata))}: "):
            read_adapter(write(tmp_path / "a.safetensors", shapes, names, metadata))


def test_all_blocks_of_a_smaller_model_are_no_part_of_a_larger(tmp_path: Path, layers: dict[str, Shapes]) -> None:
    # Both kinds of block of FLUX.2 klein, under names and shapes that FLUX.1 has too.
    double = {n: s for n, s in attention(layers["FLUX.1"], 5).items() if n.startswith("transformer_blocks.")}
    single = {f"single_transformer_blocks.{i}.attn.to_q": (3072, 3072) for i in range(20)}
    assert read_adapter(write(tmp_path / "a.safetensors", double | single, "transformer.")).family == "flux"
    fused = {f"double_blocks.{i}.img_attn.proj": (3072, 3072) for i in range(5)}
    linear = {f"single_blocks.{i}.linear1": (27648, 3072) for i in range(20)}
    with pytest.raises(StageError, match=r"a LoRA of FLUX\.2, "):
        read_adapter(write(tmp_path / "a.safetensors", fused | linear, "kohya"))
    full = {f"{kind}.{i}.attn.to_q": (3072, 3072) for kind, n in (("transformer_blocks", 19),) for i in range(n)}
    assert read_adapter(write(tmp_path / "a.safetensors", full, "transformer.")).family == "flux"


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("diffusion_model.blocks.3.self_attn.q", "Wan"),
        ("lora_unet_blocks_3_cross_attn_k_img", "Wan"),
        ("diffusion_model.layers.3.attention.qkv", "Z-Image"),
        ("lora_unet_double_blocks_3_img_mlp_fc1", "HunyuanVideo"),
        ("transformer.double_stream_blocks.3.block.attn1.to_q", "HiDream"),
        ("diffusion_model.blocks.3.attn.wq", "Krea 2"),
        ("diffusion_model.blocks.3.self_attn.q_proj", "Cosmos"),
        ("lycoris_blocks_3_self_attn_o", "Wan"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q", "Animate"),
    ],
)
@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_names_alone_may_be_enough(tmp_path: Path, name: str, title: str, kind: str) -> None:
    widths = {"Z-Image": (11520, 3840), "HunyuanVideo": (12288, 3072), "HiDream": (2560, 2560)}
    rows, columns = widths.get(title, (5120, 5120))
    lora = {f"{name}.lora_down.weight": torch.ones(1, columns), f"{name}.lora_up.weight": torch.ones(rows, 1)}
    lokr = {f"{name}.lokr_w1": torch.ones(2, 2), f"{name}.lokr_w2": torch.ones(4, 4)}
    save_file(lora if kind == "lora" else lokr, tmp_path / "a.safetensors")
    with pytest.raises(StageError, match=f"a LoRA of ([A-Z].* or )?{title}"):
        read_adapter(tmp_path / "a.safetensors")


def test_no_header_of_a_family_that_is_read_names_another() -> None:
    texts = [text for row in FAMILIES for text in (row.architecture, row.files.base_version) if text]
    texts += ["sd_1.5", "sdxl_base_v1-0", "sdxl_1.0", "flux1", "Flux.1-dev/lora", "flux-1-schnell", "sd3m", "sd_v2"]
    texts += ["networks.lora", "networks.lora_flux", "networks.lora_sd3", "lycoris.kohya", "flux-1-krea-dev"]
    for text in texts:
        for entry in ("modelspec.architecture", "ss_base_model_version", "ss_network_module"):
            assert named_in({entry: text}) is None, text


@pytest.mark.parametrize(
    "name",
    [
        "unet.output_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "unet.input_blocks.4.1.proj_in",
        "unet.my_block.to_q",
        "unet.down_blocks.0.motion.to_q",
        "text_encoder.layers.0.to_q",
        "text_encoder_2.foo",
    ],
)
def test_a_path_that_no_model_has_is_refused(tmp_path: Path, name: str) -> None:
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 640), f"{name}.lora_B.weight": torch.ones(640, 1)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"})
    with pytest.raises(StageError, match="a module that no model here has"):
        read_adapter(tmp_path / "a.safetensors")


Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    "shapes",
    [
        {Q: (999, 320)},
        {Q: (320, 999)},
        {Q: (320, 320), "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64)},
        {Q: (320, 320), "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": (640, 640)},
        {Q: (320, 320), "down_blocks.1.resnets.0.time_emb_proj": (1280, 640)},
        {
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (320, 768),
            Q.replace("1.to_q", "2.to_v"): (320, 9),
        },
        {Q: (2**17, 64)},
    ],
)
def test_a_module_of_an_impossible_shape_is_refused(tmp_path: Path, shapes: Shapes) -> None:
    for names in ("unet.", "kohya"):
        with pytest.raises(StageError, match="which is no layer of"):
            read_adapter(write(tmp_path / "a.safetensors", shapes, names))


def test_of_a_transformer_too(tmp_path: Path) -> None:
    for shape in ((999, 3072), (3072, 999)):
        path = write(tmp_path / "a.safetensors", {"transformer_blocks.0.attn.to_q": shape}, "transformer.")
        with pytest.raises(StageError, match="which is no layer of|which is not"):
            read_adapter(path)


def test_models_with_other_inputs_and_toys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    inpainting = {"conv_in.lora_A": torch.ones(1, 9, 3, 3), "conv_in.lora_B": torch.ones(320, 1, 1, 1)}
    inpainting |= {f"{Q}.lora_A": torch.ones(1, 320), f"{Q}.lora_B": torch.ones(320, 1)}
    save_file({f"unet.{name}.weight": tensor for name, tensor in inpainting.items()}, path)
    assert len(read_adapter(path).modules) == 2
    with torch.device("meta"):
        toy = diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=768,
        )
    linear = {name: layer for name, layer in toy.named_modules() if isinstance(layer, torch.nn.Linear)}
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in linear.items()}
    assert len(read_adapter(write(path, shapes, "unet.")).modules) == len(shapes)


@pytest.mark.slow
def test_the_table_is_what_the_installed_classes_have() -> None:
    recorded = json.loads((ROOT / "draft/adapters/data/other_families.json").read_text())
    if recorded["versions"]["diffusers"] != diffusers.__version__:
        pytest.skip(f"the table is of diffusers {recorded['versions']['diffusers']}")
    script = runpy.run_path(str(ROOT / "tests/golden/record_other_families.py"))
    assert script["record"]() == recorded
