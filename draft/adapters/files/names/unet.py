"""A UNet's module paths out of kohya's names, which write "." as "_", and out of the original code's."""

from __future__ import annotations

import re

from draft.adapters.files.names.text import dotted

# The vocabulary of module paths in diffusers' UNet2DConditionModel. Only with it can names that write "." as "_" be
# read back; compounds come before words.
_ATOM = re.compile(
    r"(down_blocks|up_blocks|mid_block|transformer_blocks|time_embedding|add_embedding|linear_1|linear_2|conv_in|conv_out"
    r"|conv_shortcut|time_emb_proj|class_embedding|encoder_hid_proj|to_q|to_k|to_v|to_out|add_k_proj|add_q_proj"
    r"|add_v_proj|to_add_out|proj_in|proj_out|attentions|resnets|downsamplers|upsamplers|attn1|attn2|ff|net|proj|conv"
    r"|conv1|conv2|\d+)(?:_|$)"
)
_TOPS = (
    "down_blocks.",
    "up_blocks.",
    "mid_block.",
    "conv_in",
    "conv_out",
    "time_embedding.",
    "add_embedding.",
    "class_embedding.",
    "encoder_hid_proj",
)
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def unet_path(name: str) -> str | None:
    """diffusers' path of a UNet's module.

    Args:
        name: kohya's name without its prefix: diffusers' path or the original code's, with `_` for `.`.

    Returns:
        The dotted path, or None if the name is not of a UNet's module.

    Example:
        >>> unet_path("input_blocks_4_1_proj_in")
        'down_blocks.1.attentions.0.proj_in'
    """
    if name.startswith(("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_2")):
        translated = _from_ldm(name)
        if translated is None:
            return None
        name = translated
    path = dotted(name, _ATOM)
    return path if path is not None and path.startswith(_TOPS) else None


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
        side, index, inner, suffix = match[1], int(match[2]), int(match[3]), match[4]
        place, block = ("down", index - 1) if side == "input_blocks" else ("up", index)
        level, layer = divmod(block, 3)
        sampler = f"{place}_blocks_{level}_{place}samplers_0_conv"
        if suffix == "op" or (suffix == "conv" and inner > 0):
            return sampler
        if inner == 0:
            return f"{place}_blocks_{level}_resnets_{layer}_{_RESNET[suffix]}" if suffix in _RESNET else None
        return f"{place}_blocks_{level}_attentions_{layer}_{suffix}"
    match = re.fullmatch(r"middle_block_([012])_(.+)", name)
    if match is None:
        return None
    if match[1] == "1":
        return f"mid_block_attentions_0_{match[2]}"
    return f"mid_block_resnets_{int(match[1]) // 2}_{_RESNET[match[2]]}" if match[2] in _RESNET else None
