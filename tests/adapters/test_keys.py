"""Every known spelling of a module's name means one path."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from draft.adapters.files.keys import Key, kohya_name, parse_key
from draft.adapters.files.names.transformers import PLANS

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
SINGLE, DOUBLE = "transformer.single_transformer_blocks.3", "transformer.double_blocks.3"
T5, T5_NAME = "text_encoder_3.encoder.block.0.layer", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
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
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_A.weight", Q, "down"),
        ("diffusion_model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_up.weight", Q, "up"),
        ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lokr_w1_a", Q, "lokr_w1_a"),
        ("lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight", "unet.down_blocks.0.resnets.0.conv1", "mid"),
        ("lora_unet_down_blocks_0_resnets_0_conv1.hada_t1", "unet.down_blocks.0.resnets.0.conv1", "hada_t1"),
        ("lora_unet_double_blocks_3_img_attn_qkv.lora_down.weight", f"{DOUBLE}.img_attn.qkv", "down"),
        (
            "diffusion_model.double_blocks.3.img_attn.qkv.lora_B.weight",
            f"{DOUBLE}.img_attn.qkv",
            "up",
        ),
        ("double_blocks.3.processor.qkv_lora2.up.weight", f"{DOUBLE}.txt_attn.qkv", "up"),
        ("single_blocks.3.processor.proj_lora.down.weight", f"{SINGLE}.proj_out", "down"),
        ("lora_transformer_single_transformer_blocks_3_attn_to_k.alpha", f"{SINGLE}.attn.to_k", "alpha"),
        ("lycoris_single_transformer_blocks_3_attn_to_k.lokr_w2", f"{SINGLE}.attn.to_k", "lokr_w2"),
        ("single_transformer_blocks.3.attn.to_k.lora_A.weight", f"{SINGLE}.attn.to_k", "down"),
        ("base_model.model.single_transformer_blocks.3.attn.to_k.lora_A.weight", f"{SINGLE}.attn.to_k", "down"),
        ("transformer.single_blocks.3.linear1.1.lora_up.weight", f"{SINGLE}.attn.to_k", "up"),
        ("lora_unet_img_in.lora_down.weight", "transformer.x_embedder", "down"),
        ("lora_unet_joint_blocks_7_x_block_mlp_fc1.alpha", "transformer.transformer_blocks.7.ff.net.0.proj", "alpha"),
        ("lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_1.alpha", f"{T5}.1.DenseReluDense.wi_1", "alpha"),
        (
            f"{T5}.0.SelfAttention.q.lora_A.weight",
            f"{T5}.0.SelfAttention.q",
            "down",
        ),
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
        "double_blocks.3.processor.qkv_lora.up.weight",
        "double_blocks.3.processor.qkv_lora3.up.weight",
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
        "transformer.transformer_blocks.0.img_mod.1.lora_A.weight",
        "lora_unet_double_blocks_0_img_attn_qkv_.lora_down.weight",
        "lora_te1_encoder_block_0_nonsense.alpha",
        "unet..lora_A.weight",
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


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_kohya_names_of_a_transformer_s_layers_are_the_original_code_s(family: str) -> None:
    for site in PLANS[family].sites:
        path = site.native.replace("#", "12")
        single = len(site.members) == 1 and not site.swapped
        module = f"transformer.{site.members[0].replace('#', '12') if single else path}"
        written = kohya_name(module, family=family)
        assert written == f"lora_unet_{path.replace('.', '_')}"
        assert parse_key(f"{written}.alpha") == Key(module, "alpha")


@pytest.mark.parametrize(
    ("module", "family", "name"),
    [
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "sd", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "sdxl", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "sd3", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        (f"{T5}.0.SelfAttention.q", "sd3", T5_NAME),
        (f"{T5}.0.SelfAttention.q".replace("3", "2", 1), "flux", T5_NAME),
        ("transformer.transformer_blocks.0.attn.to_q", "flux", None),
        ("transformer.my_block.to_q", "flux", None),
    ],
)  # fmt: skip
def test_text_encoders_are_numbered_as_kohya_s_tools_number_them(module: str, family: str, name: str | None) -> None:
    assert kohya_name(module, family=family) == name
