"""Diffusers' folders in the original single-file layouts of Stable Diffusion, written apart from the reader."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

PARTS = ("unet", "vae", "text_encoder", "scheduler")

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.": "token_embedding.",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def original_unet(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The UNet under the names of CompVis' code, where a block's resnets, attentions and resampling are one list."""
    crossed = {name.split(".")[1] for name in tensors if re.match(r"up_blocks\.\d+\.attentions", name)}

    def rename(name: str) -> str:
        for new, old in UNET.items():
            if name.startswith(f"{new}."):
                return old + name.removeprefix(new)
        side, *rest = name.split(".")
        if side == "mid_block":
            kind, index, inner = rest[0], int(rest[1]), ".".join(rest[2:])
            place = f"middle_block.{1 if kind == 'attentions' else 2 * index}"
        else:
            block, kind, index, inner = rest[0], rest[1], int(rest[2]), ".".join(rest[3:])
            first = int(block) * (layers + 1) + (1 if side == "down_blocks" else 0)
            stem = "input_blocks" if side == "down_blocks" else "output_blocks"
            if kind == "downsamplers":
                return f"{stem}.{first + layers}.0.op{inner.removeprefix('conv')}"
            if kind == "upsamplers":
                return f"{stem}.{first + layers}.{2 if block in crossed else 1}.{inner}"
            place = f"{stem}.{first + index}.{1 if kind == 'attentions' else 0}"
        if kind == "resnets":
            layer, _, leaf = inner.partition(".")
            inner = f"{RESNET[layer]}.{leaf}"
        return f"{place}.{inner}"

    return {f"model.diffusion_model.{rename(name)}": tensor for name, tensor in tensors.items()}


def original_vae(tensors: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The autoencoder under CompVis' names: attention as 1x1 convolutions, the decoder's blocks counted backwards."""
    found = {}
    for name, tensor in tensors.items():
        old = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        old = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", old)
        old = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", old)
        old = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", old)
        old = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", old)
        old = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", old)
        if "mid_block.attentions.0." in old:
            head, inner = old.split("mid_block.attentions.0.")
            layer, leaf = inner.rsplit(".", 1)
            old = f"{head}mid.attn_1.{ATTENTION[layer]}.{leaf}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[f"first_stage_model.{old}"] = tensor
    return found


def original_text(tensors: dict[str, Tensor], version: str) -> dict[str, Tensor]:
    """The text encoder: CLIP under transformers' own names in version 1, OpenCLIP's in version 2."""
    if version == "1":
        return clip_text(tensors, "cond_stage_model.transformer.text_model.")
    width = len(tensors[next(name for name in tensors if name.endswith("final_layer_norm.weight"))])
    return openclip_text({**tensors, "text_projection.weight": torch.eye(width)}, "cond_stage_model.model.")


def clip_text(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A text encoder under transformers' own names, with the buffer that older releases kept in files."""
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    count = len(tensors["embeddings.position_embedding.weight"])
    ids = {"embeddings.position_ids": torch.arange(count)[None]}
    return {f"{prefix}{name}": tensor for name, tensor in {**tensors, **ids}.items()}


def openclip_text(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A text encoder with its projection under OpenCLIP's names, where q, k and v are one matrix."""
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    projection = tensors.pop("text_projection.weight")
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for new, old in OPENCLIP.items():
            name = name.replace(new, old)
        if ".attn.q_proj." in name:
            head, leaf = name.split("q_proj.")
            source = name.replace("attn", "self_attn").replace("transformer.resblocks", "encoder.layers")
            three = [tensors[source.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            name, tensor = f"{head}in_proj_{leaf}", torch.cat(three)
        elif re.search(r"\.attn\.[kv]_proj\.", name):
            continue
        found[name] = tensor
    found |= {"text_projection": projection.T.contiguous(), "logit_scale": torch.tensor(4.6)}
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


def original(folder: Path, version: str) -> dict[str, Tensor]:
    """A diffusers folder as the tensors of a single file, with the buffers that published files also hold."""
    config = {part: json.loads((folder / part / "config.json").read_text()) for part in PARTS[:3]}
    unet, vae = (load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))
    return {
        **original_unet(unet, config["unet"]["layers_per_block"]),
        **original_vae(vae, len(config["vae"]["block_out_channels"])),
        **original_text(load_file(folder / "text_encoder" / "model.safetensors"), version),
        "betas": torch.linspace(0, 1, 3),
        "model_ema.decay": torch.tensor(0.999),
    }


def original_xl(folder: Path) -> dict[str, Tensor]:
    """A diffusers folder of Stable Diffusion XL as the tensors of a single file."""
    config = {part: json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae")}
    unet, vae = (load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))
    first, second = (load_file(folder / part / "model.safetensors") for part in ("text_encoder", "text_encoder_2"))
    return {
        **original_unet(unet, config["unet"]["layers_per_block"]),
        **original_vae(vae, len(config["vae"]["block_out_channels"])),
        **clip_text(first, "conditioner.embedders.0.transformer.text_model."),
        **openclip_text(second, "conditioner.embedders.1.model."),
    }
