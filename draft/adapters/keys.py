"""Names of LoRA tensors: every known way to write them, and the one module path they all mean."""

from __future__ import annotations

import re
from typing import NamedTuple

PARTS = ("unet", "text_encoder", "text_encoder_2")
"""The models of a pipeline that a LoRA may touch; the first component of every module path here."""

_KOHYA_PREFIX = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}

# The vocabulary of module paths in diffusers' UNet2DConditionModel and transformers' CLIP text model. Only with it can
# kohya's names, which write "." as "_", be read back; compounds come before words.
_ATOM = re.compile(
    r"(down_blocks|up_blocks|mid_block|transformer_blocks|time_embedding|add_embedding|linear_1|linear_2|conv_in|conv_out"
    r"|conv_shortcut|time_emb_proj|class_embedding|encoder_hid_proj|to_q|to_k|to_v|to_out|add_k_proj|add_q_proj"
    r"|add_v_proj|to_add_out|proj_in|proj_out|text_model|self_attn|q_proj|k_proj|v_proj|out_proj|text_projection"
    r"|attentions|resnets|downsamplers|upsamplers|attn1|attn2|ff|net|proj|conv|conv1|conv2|encoder|layers|mlp|fc1|fc2"
    r"|\d+)(?:_|$)"
)

_SUFFIX = re.compile(
    r"(?P<module>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.(?!weight)\w+)?\.weight"
    r"|\.lora_(?P<kohya>down|up)\.weight"
    r"|(?P<old>\.lora|_lora|\.lora_linear_layer)\.(?P<side>down|up)\.weight"
    r"|\.(?P<alpha>alpha))"
)
_UNET_TOPS = ("down_blocks.", "up_blocks.", "mid_block.", "conv_in", "conv_out", "time_embedding.", "add_embedding.")
_TEXT_TOPS = ("text_model.", "encoder.layers.", "text_projection")
_TEXT_OLD = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


class Key(NamedTuple):
    """One tensor's name, understood.

    Args:
        module: The module's path, beginning with one of `PARTS`.
        role: `down` (A), `up` (B) or `alpha`.
    """

    module: str
    role: str


def parse_key(name: str) -> Key | None:
    """The module and role that a tensor's name means, or None if it is no known LoRA name.

    Args:
        name: As in the file: kohya (`lora_unet_..._to_q.lora_down.weight`), peft and diffusers
            (`unet.….to_q.lora_A.weight`, with or without `base_model.model.`), and diffusers' older attention-processor
            names (`unet.….processor.to_q_lora.down.weight`, `….to_q.lora.down.weight`).

    Returns:
        The key, or None.

    Example:
        >>> parse_key("lora_unet_mid_block_attentions_0_proj_in.alpha")
        Key(module='unet.mid_block.attentions.0.proj_in', role='alpha')
    """
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return None
    module = _module_path(match["module"], compact=match["old"] == "_lora")
    if module is None:
        return None
    if match["alpha"]:
        return Key(module, "alpha")
    return Key(module, {"A": "down", "B": "up"}[match["peft"]] if match["peft"] else match["kohya"] or match["side"])


def kohya_name(module: str) -> str | None:
    """The name that kohya's tools give a module, or None if reading it back would not give the same module.

    Args:
        module: A module path beginning with one of `PARTS`.

    Returns:
        For example `lora_unet_mid_block_attentions_0_proj_in`.
    """
    part, _, path = module.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}[part]
    name = prefix + path.replace(".", "_")
    return name if _module_path(name) == module else None


def _module_path(name: str, *, compact: bool = False) -> str | None:
    for prefix, part in _KOHYA_PREFIX.items():
        if name.startswith(prefix):
            path = _dotted(name.removeprefix(prefix))
            return None if path is None else _canonical(part, path)
    name = name.removeprefix("base_model.model.")
    part, _, path = name.partition(".")
    if part not in PARTS:
        if name.startswith(_UNET_TOPS):
            part, path = "unet", name
        elif name.startswith(_TEXT_TOPS):
            part, path = "text_encoder", name
        else:
            return None
    if not path:
        return None
    path = path.replace(".processor.", ".")
    if compact:
        # The attention processors' `to_out_lora` stands for `to_out.0`; in a text encoder `to_q_lora` is `q_proj`.
        head, _, last = path.rpartition(".")
        last = _TEXT_OLD.get(last, last) if part != "unet" else {"to_out": "to_out.0"}.get(last, last)
        path = f"{head}.{last}"
    return _canonical(part, path)


def _canonical(part: str, path: str) -> str:
    # transformers 5 dropped the `text_model.` level that every file before it has.
    if part != "unet" and path.startswith("encoder."):
        path = f"text_model.{path}"
    return f"{part}.{path}"


def _dotted(name: str) -> str | None:
    """Turn kohya's underscored module name into a dotted path by the grammar of the module names."""
    if name.startswith(("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_2")):
        translated = _from_ldm(name)
        if translated is None:
            return None
        name = translated
    atoms: list[str] = []
    position = 0
    while position < len(name):
        match = _ATOM.match(name, position)
        if match is None:
            return None
        atoms.append(match[1])
        position = match.end()
    return ".".join(atoms) if atoms and not name.endswith("_") else None


def _from_ldm(name: str) -> str | None:
    """Translate the original latent-diffusion names (two resnets per level, as in SD 1, SD 2 and SDXL)."""
    fixed = {
        "input_blocks_0_0": "conv_in",
        "out_2": "conv_out",
        "time_embed_0": "time_embedding_linear_1",
        "time_embed_2": "time_embedding_linear_2",
        "label_emb_0_0": "add_embedding_linear_1",
        "label_emb_0_2": "add_embedding_linear_2",
    }
    if name in fixed:
        return fixed[name]
    match = re.fullmatch(r"(input_blocks|output_blocks)_(\d+)_(\d)_(.+)", name)
    if match:
        side, index, inner, rest = match[1], int(match[2]), int(match[3]), match[4]
        place, block = ("down", index - 1) if side == "input_blocks" else ("up", index)
        level, layer = divmod(block, 3)
        sampler = f"{place}_blocks_{level}_{place}samplers_0_conv"
        if rest == "op" or (rest == "conv" and inner > 0):
            return sampler
        if inner == 0:
            return f"{place}_blocks_{level}_resnets_{layer}_{_RESNET[rest]}" if rest in _RESNET else None
        return f"{place}_blocks_{level}_attentions_{layer}_{rest}"
    match = re.fullmatch(r"middle_block_([012])_(.+)", name)
    if match is None:
        return None
    if match[1] == "1":
        return f"mid_block_attentions_0_{match[2]}"
    return f"mid_block_resnets_{int(match[1]) // 2}_{_RESNET[match[2]]}" if match[2] in _RESNET else None
