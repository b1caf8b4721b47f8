"""The key map of diffusers, held against diffusers' own converters, run on every name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import (
    FluxLoraLoaderMixin,
    SD3LoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

from draft.adapters.files.config import Alphas
from draft.adapters.verification.contents import Contents
from draft.adapters.verification.keymap import key_map
from draft.adapters.verification.layouts import Layout, Spelling
from draft.adapters.verification.models import BaseModel, base_models
from draft.adapters.verification.tools import as_of, tools
from draft.adapters.verification.verdict import judge

BASES = {base.key: base for base in base_models()}
DIFFUSERS = as_of(tools()[0], diffusers.__version__)
MIXINS = {
    "sd": StableDiffusionLoraLoaderMixin,
    "sdxl": StableDiffusionXLLoraLoaderMixin,
    "sd3": SD3LoraLoaderMixin,
    "flux": FluxLoraLoaderMixin,
}


def layout_of(base: str, name: str) -> Layout:
    return next(layout for layout in DIFFUSERS.layouts if base in layout.bases and layout.name == name)


def spelled(base: BaseModel, template: str, part: str) -> dict[str, tuple[str, ...]]:
    """Every module of a part under one spelling, whether or not diffusers knows it."""
    return key_map(replace(DIFFUSERS.layouts[0], spellings={part: (Spelling(template),)}), base)


def tensors(base: BaseModel, names: dict[str, tuple[str, ...]], up: str, down: str) -> dict[str, torch.Tensor]:
    """Rank-1 factors, the output side as long as the modules behind the name together."""
    found = {}
    for name, modules in names.items():
        found[f"{name}{down}"] = torch.zeros(1, 1)
        found[f"{name}{up}"] = torch.zeros(sum(base.modules[module][0] for module in modules), 1)
    return found


def loaded_by_diffusers(base: BaseModel, state: dict[str, torch.Tensor]) -> set[str]:
    """The modules that diffusers' converters find behind the names, of those that the model has."""
    mixin = MIXINS[base.family]
    options = {"unet_config": SimpleNamespace(layers_per_block=2)} if base.family == "sdxl" else {}
    converted = mixin.lora_state_dict(dict(state), **options)
    converted = converted[0] if isinstance(converted, tuple) else converted
    found: set[str] = set()
    for part in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        own = {k.removeprefix(f"{part}."): v for k, v in converted.items() if k.startswith(f"{part}.")}
        if not own:
            continue
        if part.startswith("text_encoder"):
            own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
        elif "lora_A" not in next(iter(own)):
            own = convert_unet_state_dict_to_peft(own)
        names = {f"{part}.{key.split('.lora_A')[0]}" for key in own if ".lora_A" in key}
        found |= {name for name in names if name in base.modules}
    return found


@pytest.mark.parametrize(
    ("base", "layout", "spellings"),
    [
        ("sd1", "kohya", {"unet": "lora_unet_{flat}", "text_encoder": "lora_te_{flat}"}),
        ("sd2", "kohya", {"unet": "lora_unet_{flat}", "text_encoder": "lora_te1_{flat}"}),
        ("sdxl", "kohya", {"unet": "lora_unet_{flat}", "text_encoder": "lora_te1_{flat}"}),
        ("sdxl", "kohya", {"unet": "lora_unet_{original_flat}", "text_encoder_2": "lora_te2_{flat}"}),
        ("sd1", "diffusers", {"unet": "unet.{path}", "text_encoder": "text_encoder.{path}"}),
        ("sdxl", "diffusers", {"unet": "unet.{path}", "text_encoder_2": "text_encoder_2.{path}"}),
        ("sd3", "diffusers", {"transformer": "transformer.{path}", "text_encoder": "text_encoder.{path}"}),
        ("flux", "diffusers", {"transformer": "transformer.{path}", "text_encoder": "text_encoder.{path}"}),
        ("flux", "kohya", {"transformer": "lora_unet_{original_flat}", "text_encoder": "lora_te1_{flat}"}),
        ("flux", "OneTrainer", {"transformer": "lora_transformer_{flat}"}),
    ],
)
def test_the_key_map_of_diffusers_holds_the_modules_that_its_converters_find(
    base: str, layout: str, spellings: dict[str, str]
) -> None:
    model, kind = BASES[base], layout_of(base, layout)
    up, down = kind.pairs[0]
    names = {name: ms for part, text in spellings.items() for name, ms in spelled(model, text, part).items()}
    known = key_map(kind, model)
    state = tensors(model, names, up, down)
    if layout == "OneTrainer":
        state |= {f"{name}.alpha": torch.tensor(1.0) for name in names}
    refused = {name for name in names if any(rule.name.fullmatch(f"{name}{down}") for rule in kind.refusals)}
    if refused:
        with pytest.raises(ValueError, match="unpack|int|not supported"):
            loaded_by_diffusers(model, state)
        names = {name: modules for name, modules in names.items() if name not in refused}
        state = {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in refused}
    expected = {module for name in names if name in known for module in known[name]}
    assert len(names) > 200 and expected
    assert loaded_by_diffusers(model, state) == expected


def small_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


@pytest.mark.parametrize("several", [False, True])
def test_the_strengths_that_diffusers_loses_are_those_it_really_loses(several: bool) -> None:
    unet = small_unet()
    ends = ("to_q", "to_v", "ff.net.0.proj", "proj_in", "conv1")
    chosen = {name: module for name, module in unet.named_modules() if name.endswith(ends)}
    state, strengths, shapes, alphas = {}, {}, {}, {}
    for i, (name, module) in enumerate(chosen.items()):
        flat = f"lora_unet_{name.replace('.', '_')}"
        rank, alpha = (1 + i % 3, 2.0 ** (i % 2)) if several else (2, 1.0)
        state[f"{flat}.lora_down.weight"] = torch.ones(rank, *module.weight.shape[1:])
        state[f"{flat}.lora_up.weight"] = torch.ones(
            module.weight.shape[0], rank, *([1, 1] * (module.weight.ndim == 4))
        )
        state[f"{flat}.alpha"] = torch.tensor(alpha)
        alphas[f"{flat}.alpha"] = alpha
        strengths[f"unet.{name}"] = alpha / rank
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    base = BaseModel("sd1", "sd", "small", {f"unet.{n}": tuple(m.weight.shape) for n, m in chosen.items()}, {})
    told = judge(DIFFUSERS, base, Contents(shapes, alphas, Alphas(), False, strengths))
    converted, network_alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(state))
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(converted, network_alphas=network_alphas, unet=unet)
    layers = {n: m.scaling["default_0"] for n, m in unet.named_modules() if hasattr(m, "scaling")}
    assert layers.keys() == chosen.keys()
    real = {round(scaling / strengths[f"unet.{name}"], 6) for name, scaling in layers.items()}
    assert told.status == "all" and set(told.ratios) == real
    assert (real != {1.0}) == several
