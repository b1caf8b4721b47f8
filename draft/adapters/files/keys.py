"""Names of LoRA tensors: every known way to write them, and the one module path they all mean."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from draft.adapters.files.names.text import canonical_text, is_t5, text_path
from draft.adapters.files.names.transformers import PLANS, locate, member_of
from draft.adapters.files.names.unet import unet_path
from draft.diffusion.families import family_named

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""The models of a pipeline that a LoRA may touch; the first component of every module path here."""

# Prefixes of names that write "." as "_"; an empty part is the denoiser, of whichever kind the name says.
_FLAT = {
    "lora_unet_": "",
    "lora_transformer_": "transformer",
    "lycoris_": "",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
_DOTTED = {
    "diffusion_model.": "",
    "model.diffusion_model.": "",
    "unet.": "unet",
    "transformer.": "transformer",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
    "clip_l.transformer.": "text_encoder",
    "clip_g.transformer.": "text_encoder_2",
    "clip_h.transformer.": "text_encoder",
    "clip_l.": "text_encoder",
    "clip_g.": "text_encoder_2",
    "clip_h.": "text_encoder",
    "t5.": "text_encoder_3",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
}
_SUFFIX = re.compile(
    r"(?P<module>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.(?!weight)\w+)?\.weight"
    r"|\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|(?P<old>\.lora|_lora|\.lora_linear_layer)\.(?P<side>down|up)\.weight"
    r"|\.(?P<magnitude>dora_scale|lora_magnitude_vector)(?:\.(?!weight)\w+)?(?:\.weight)?"
    r"|\.(?P<other>alpha|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
    r")"
)
_XLABS = re.compile(
    r"(?:diffusion_model\.)?(?P<blocks>double_blocks|single_blocks)\.(?P<number>\d+)\.processor\."
    r"(?P<layer>qkv|proj)_lora(?P<stream>[12]?)\.(?P<side>down|up)\.weight"
)
_UNET_TOPS = ("down_blocks.", "up_blocks.", "mid_block.", "conv_in", "conv_out", "time_embedding.", "add_embedding.")
_LDM_TOPS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_TEXT_TOPS = ("text_model.", "encoder.layers.", "encoder.block.", "text_projection")


class Key(NamedTuple):
    """One tensor's name, understood.

    Args:
        module: The module's path, beginning with one of `PARTS`; of a transformer's fused layer the original code's
            (`transformer.double_blocks.0.img_attn.qkv`), which `draft.adapters.files.fusion` takes apart.
        role: `down` (A), `up` (B), `mid` (Tucker's core), `alpha`, DoRA's `dora_scale` or
            `lora_magnitude_vector`, or LyCORIS' name of a factor (`hada_w1_a`, ...).
    """

    module: str
    role: str


def parse_key(name: str, *, part: str = "") -> Key | None:
    """The module and role that a tensor's name means, or None if it is no known LoRA name.

    Args:
        name: As in the file: kohya (`lora_unet_..._to_q.lora_down.weight`), peft and diffusers
            (`unet.….to_q.lora_A.weight`, with or without `base_model.model.`), diffusers' older attention-processor
            names (`unet.….processor.to_q_lora.down.weight`, `….to_q.lora.down.weight`), the original code's with
            ComfyUI's `diffusion_model.`, XLabs', OneTrainer's and ai-toolkit's (`lora_transformer_…`).
        part: The denoiser of a family whose modules are in no table here: paths that begin with it are taken as they
            are. Empty: none.

    Returns:
        The key, or None.

    Example:
        >>> parse_key("lora_unet_mid_block_attentions_0_proj_in.alpha")
        Key(module='unet.mid_block.attentions.0.proj_in', role='alpha')
    """
    match = _XLABS.fullmatch(name)
    if match is not None:
        return _xlabs(match)
    match, key = _SUFFIX.fullmatch(name), split_name(name)
    if match is None or key is None:
        return None
    plain = part and key.module.startswith(f"{part}.")
    module = key.module if plain else _module_path(key.module, compact=match["old"] == "_lora")
    return None if module is None else Key(module, key.role)


def split_name(name: str) -> Key | None:
    """A tensor's name taken apart, whatever model it is of: the module's path is as the file writes it.

    Args:
        name: As in the file.

    Returns:
        Path and role, or None if it does not end as a LoRA's tensors do.
    """
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return None
    if other := match["other"] or match["magnitude"]:
        return Key(match["module"], other)
    role = {"A": "down", "B": "up"}[match["peft"]] if match["peft"] else match["kohya"] or match["side"]
    return Key(match["module"], role)


def kohya_name(module: str, *, family: str = "sd") -> str | None:
    """The name that kohya's tools give a module, or None if reading it back would not give the same module.

    Args:
        module: A module path beginning with one of `PARTS`. A transformer's layer that kohya's names fuse with others
            has none of its own; for those give the fused layer's path.
        family: The adapter's family.

    Returns:
        For example `lora_unet_mid_block_attentions_0_proj_in`.
    """
    part, _, path = module.partition(".")
    flat = path.replace(".", "_")
    if part in ("unet", "transformer"):
        entry = member_of(path, family) if part == "transformer" and family in PLANS else None
        if entry is not None:
            flat = entry[0].native.replace("#", entry[2]).replace(".", "_")
        name = f"lora_unet_{flat}"
        return name if _module_path(name) == module else None
    several = len(family_named(family).encoders) > 1
    # A T5 is kohya's third text encoder also where the pipeline has no second one.
    number = {"text_encoder": "1", "text_encoder_2": "2", "text_encoder_3": "3"}[part]
    number = "3" if is_t5(path) else number if several or number != "1" else ""
    name = f"lora_te{number}_{flat}"
    return name if text_path(flat) == path else None


@lru_cache(maxsize=2**14)  # of one module there are three tensors, and two files of one tool have the same names
def _module_path(name: str, *, compact: bool = False) -> str | None:
    for prefix, part in _FLAT.items():
        if name.startswith(prefix):
            return _flat(name.removeprefix(prefix), part)
    name = name.removeprefix("base_model.model.")
    for prefix, part in _DOTTED.items():
        if name.startswith(prefix):
            path = name.removeprefix(prefix)
            read = _text if part.startswith("text_encoder") else _denoiser
            return read(path, part, compact=compact)
    if name.startswith(_TEXT_TOPS):
        return _text(name, "text_encoder", compact=compact)
    return _denoiser(name, "", compact=compact)


def _flat(name: str, part: str) -> str | None:
    if part.startswith("text_encoder"):
        path = text_path(name)
        return None if path is None else f"{part}.{path}"
    path = locate(name)
    if path is not None:
        return f"transformer.{path}"
    path = None if part == "transformer" else unet_path(name)
    return None if path is None else f"unet.{path}"


def _denoiser(path: str, part: str, *, compact: bool) -> str | None:
    path = path.replace(".processor.", ".")
    if compact:
        # The attention processors' `to_out_lora` stands for `to_out.0`.
        head, _, last = path.rpartition(".")
        path = f"{head}.{'to_out.0' if last == 'to_out' else last}"
    module = None if part == "unet" else locate(path)
    if module is not None:
        return f"transformer.{module}"
    if part == "unet" or (part == "" and path.startswith(_UNET_TOPS)):
        return f"unet.{path}" if unet_path(path.replace(".", "_")) == path else None
    if part == "" and path.startswith(_LDM_TOPS):
        module = unet_path(path.replace(".", "_"))
    return None if module is None else f"unet.{module}"


def _text(path: str, part: str, *, compact: bool) -> str | None:
    path = canonical_text(path, compact=compact)
    return f"{part}.{path}" if text_path(path.replace(".", "_")) == path else None


def _xlabs(match: re.Match[str]) -> Key | None:
    """XLabs' attention processors: 1 is the image's stream, 2 the text's; a single block's has no number."""
    if match["blocks"] == "single_blocks":
        layer = {"qkv": "qkv", "proj": "linear2"}[match["layer"]] if not match["stream"] else None
    else:
        stream = {"1": "img_attn", "2": "txt_attn"}.get(match["stream"])
        layer = f"{stream}.{match['layer']}" if stream else None
    path = locate(f"{match['blocks']}.{match['number']}.{layer}") if layer else None
    return None if path is None else Key(f"transformer.{path}", match["side"])
