"""Files of every layout for small models of each family, and what diffusers' own pipelines make of them."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from loading_edits import edited
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from draft.adapters.changes import Changes, dense
from draft.adapters.verification.models import BaseModel, base_models

BASES = {base.key: base for base in base_models()}
ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2", "sdxl": "stable-diffusion-xl-v1-base"}
ARCHITECTURES |= {"sd3": "stable-diffusion-3-medium", "flux": "flux-1-dev"}
PIPELINES = {"sdxl": StableDiffusionXLPipeline, "sd3": StableDiffusion3Pipeline, "flux": FluxPipeline}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A file and what becomes of it.

    Args:
        row: What is special about it.
        base: The base model.
        modules: Patterns for the modules that it has.
        names: Per part the spelling of names; a list has patterns of modules with one each.
        outcome: What diffusers does and `draft verify` says: `all`, `some` or `none` with the strengths, or `refuses`;
            `unreadable` where Draft refuses the file, and diffusers too.
        pair: The endings of B and A; a list of lists has patterns of modules with a pair each.
        alpha: Alphas, taken in turn; None is none.
        ranks: Ranks, taken in turn.
        header: `lora_adapter_metadata`.
        edit: What else is done to the tensors: a function of `loading_edits` and its arguments.
        before: Other outcomes, by the release of diffusers that brought this one.
        slow: Whether it is a sibling of a quick one.
    """

    row: str
    base: str
    modules: tuple[str, ...]
    names: Mapping[str, Any]
    outcome: str
    pair: Any = (".lora_up.weight", ".lora_down.weight")
    alpha: tuple[float | None, ...] = (None,)
    ranks: tuple[int, ...] = (2,)
    header: Mapping[str, Any] | None = None
    edit: tuple[Any, ...] = ()
    before: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False


def rows() -> list[Row]:
    """The table in `loading.json`."""
    table = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    entries = []
    for row in table["rows"]:
        modules = [table["patterns"].get(pattern, pattern) for pattern in row["modules"]]
        names = table["names"][row["names"]] if isinstance(row["names"], str) else row["names"]
        entry = {**row, "modules": tuple(modules), "names": names}
        if "pair" in row:
            entry["pair"] = table["pairs"][row["pair"]] if isinstance(row["pair"], str) else row["pair"]
        entries.append(Row(**entry))
    return entries


def clip(kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection] = CLIPTextModel) -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 50}
    return kind(CLIPTextConfig(**sizes, num_hidden_layers=2, projection_dim=8))


def unet(key: str) -> nn.Module:
    if key == "sdxl":
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 8, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),  # type: ignore[arg-type]
            attention_head_dim=2,
            cross_attention_dim=16,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=2,
            projection_class_embeddings_input_dim=20,
        )
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
        use_linear_projection=key == "sd2",
    )


@cache
def parts(key: str) -> dict[str, nn.Module]:
    """The models of a pipeline, too small for anything but loading."""
    if key in ("sd1", "sd2"):
        return {"unet": unet(key), "text_encoder": clip()}
    if key == "sdxl":
        return {"unet": unet(key), "text_encoder": clip(), "text_encoder_2": clip(CLIPTextModelWithProjection)}
    sizes: dict[str, Any] = {"attention_head_dim": 4, "num_attention_heads": 2, "in_channels": 4}
    sizes |= {"joint_attention_dim": 6, "pooled_projection_dim": 4}
    if key == "sd3":
        transformer = SD3Transformer2DModel(
            num_layers=2, sample_size=4, caption_projection_dim=8, out_channels=4, **sizes
        )
        encoders = {name: clip(CLIPTextModelWithProjection) for name in ("text_encoder", "text_encoder_2")}
        return {"transformer": transformer, **encoders}
    flux = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, patch_size=1, axes_dims_rope=(0, 2, 2), guidance_embeds=True, **sizes
    )
    return {"transformer": flux, "text_encoder": clip()}


@cache
def base_of(key: str) -> BaseModel:
    """The base model whose modules are those of the small models."""
    modules = {}
    for part, model in parts(key).items():
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                # transformers 5 dropped the level that every file has.
                name = f"text_model.{path}" if path.startswith("encoder.") else path
                modules[f"{part}.{name}"] = tuple(layer.weight.shape)
    assert modules.keys() <= BASES[key].modules.keys()
    return replace(BASES[key], modules=modules)


def pipeline_of(key: str) -> Any:
    """A pipeline of the small models."""
    models: dict[str, Any] = {name: copy.deepcopy(model) for name, model in parts(key).items()}
    absent = {"vae": None, "tokenizer": None, "scheduler": DDIMScheduler()}
    if key in ("sd1", "sd2"):
        absent |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        absent |= {"tokenizer_2": None}
    if key in ("sd3", "flux"):
        absent |= {"scheduler": FlowMatchEulerDiscreteScheduler()}
        absent |= {"tokenizer_3": None, "text_encoder_3": None} if key == "sd3" else {"text_encoder_2": None}
    return PIPELINES.get(key, StableDiffusionPipeline)(**models, **absent)


def chosen(options: Any, module: str) -> Any:
    """The first option whose pattern a module has, if there are several."""
    if options is None or isinstance(options[0], str):
        return options
    return next(option for pattern, option in options if re.search(pattern, module))


def spelled(base: BaseModel, module: str, template: str) -> str:
    """A module's name in a file, by rules that are not those of the product."""
    part, _, path = module.partition(".")
    original = base.original.get(module, "")
    processor = re.sub(r"\.(attn[12])\.(to_[qkv]|to_out)(\.0)?$", r".\1.processor.\2", path)
    words = {"part": part, "path": path, "processor": processor, "original": original}
    words |= {"flat": path.replace(".", "_"), "original_flat": original.replace(".", "_")}
    words["old"] = re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", path)
    return template.format(**words)


def modules_of(row: Row) -> dict[str, list[str]]:
    """The modules of a row's file by the name in it."""
    base = base_of(row.base)
    modules_by_name: dict[str, list[str]] = {}
    for module in base.modules:
        template = chosen(row.names.get(module.partition(".")[0]), module)
        if template and any(re.search(pattern, module) for pattern in row.modules):
            modules_by_name.setdefault(spelled(base, module, template), []).append(module)
    return modules_by_name


def tensors_of(row: Row) -> Tensors:
    """The tensors of a row's file."""
    base = base_of(row.base)
    generator = torch.Generator().manual_seed(1)
    tensors: Tensors = {}
    for i, (name, modules) in enumerate(modules_of(row).items()):
        rank, alpha = row.ranks[i % len(row.ranks)], row.alpha[i % len(row.alpha)]
        rows, columns = sum(base.modules[module][0] for module in modules), base.modules[modules[0]][1:]
        up, down = chosen(row.pair, modules[0])
        tensors[name + down] = torch.randn(rank, *columns, generator=generator)
        tensors[name + up] = torch.randn(rows, rank, *[1] * (len(columns) - 1), generator=generator)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return edited(tensors, *row.edit) if row.edit else tensors


def write(row: Row, path: Path) -> None:
    """Write a row's file."""
    header = {"modelspec.architecture": f"{ARCHITECTURES[row.base]}/lora"}
    if row.header is not None:
        header["lora_adapter_metadata"] = json.dumps(row.header)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors_of(row).items()}, path, metadata=header)


def outcome(key: str, path: Path, changes: Changes) -> tuple[str, set[str]]:
    """What a pipeline does with a file.

    Args:
        key: The base model.
        path: The file.
        changes: What it means.

    Returns:
        `all`, `some` or `none` of the modules with the distinct strengths, measured as dW over dW, or `refuses`; and
        the modules that it loads.
    """
    pipeline = pipeline_of(key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline.load_lora_weights(path.parent, weight_name=path.name)
    except Exception:
        return "refuses", set()
    if any(weight.is_meta for part in parts(key) for weight in getattr(pipeline, part).parameters()):
        return "refuses", set()
    strengths: dict[str, str] = {}
    for module, change in changes.modules.items():
        part, _, route = module.partition(".")
        model = getattr(pipeline, part, None)
        layers = dict(model.named_modules()) if model is not None else {}
        layer: Any = layers.get(route, layers.get(route.removeprefix("text_model.")))
        if getattr(layer, "lora_A", None):
            strengths[module] = strength(layer, dense(change))
    status = "all" if strengths.keys() == changes.modules.keys() else "some" if strengths else "none"
    return " ".join([status, *sorted(set(strengths.values()))]), set(strengths)


def strength(layer: Any, wanted: Tensor) -> str:
    """How strong a layer of peft applies a change."""
    loaded = layer.get_delta_weight("default_0").double().flatten(1)
    ratio = float((loaded * wanted).sum() / wanted.square().sum())
    assert (loaded - ratio * wanted).norm() < 1e-3 * wanted.norm()
    return f"{ratio:.3g}{' with magnitudes' if layer.use_dora['default_0'] else ''}"
