"""Every known spelling of a module's name means one path."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from draft.adapters.keys import Key, kohya_name, parse_key

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_encoder.text_model.encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "module", "role"),
    [
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight", Q, "down"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.alpha", Q, "alpha"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight", Q, "up"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", Q, "down"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.default.weight", Q, "up"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.alpha", Q, "alpha"),
        ("base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight", Q, "up"),
        ("base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight", Q, "up"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight", Q, "down"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight", Q, "up"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight", Q, "down"),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "up",
        ),
        ("lora_te_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight", TEXT, "up"),
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight", TEXT, "up"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.down.weight", TEXT, "down"),
        ("text_encoder.encoder.layers.3.self_attn.q_proj.lora_A.weight", TEXT, "down"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.down.weight", TEXT, "down"),
        ("lora_unet_out_2.lora_down.weight", "unet.conv_out", "down"),
        ("lora_unet_input_blocks_3_0_op.lora_down.weight", "unet.down_blocks.0.downsamplers.0.conv", "down"),
        ("lora_unet_output_blocks_5_2_conv.lora_up.weight", "unet.up_blocks.1.upsamplers.0.conv", "up"),
        ("lora_unet_output_blocks_3_0_in_layers_2.lora_up.weight", "unet.up_blocks.1.resnets.0.conv1", "up"),
        ("lora_unet_middle_block_2_emb_layers_1.alpha", "unet.mid_block.resnets.1.time_emb_proj", "alpha"),
    ],
)
def test_a_known_spelling_is_read_as_its_module_and_role(name: str, module: str, role: str) -> None:
    assert parse_key(name) == Key(module, role)


@pytest.mark.parametrize(
    "name",
    [
        "conv_in.weight",
        "lora_unet_nonsense_3_to_q.lora_up.weight",
        "transformer.blocks.0.to_q.lora_A.weight",
        "alpha",
        "",
    ],
)
def test_other_names_are_not_guessed(name: str) -> None:
    assert parse_key(name) is None


@pytest.mark.parametrize("blocks", [1, 2])
def test_kohya_names_of_every_module_of_a_real_unet_read_back_as_that_module(blocks: int) -> None:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=blocks,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=blocks == 2,
    )
    names = [n for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    kohya = [kohya_name(f"unet.{name}") for name in names]
    assert len(names) > 80 and None not in kohya and len(set(kohya)) == len(names)
    for name, written in zip(names, kohya, strict=True):
        assert parse_key(f"{written}.lora_down.weight") == Key(f"unet.{name}", "down")
