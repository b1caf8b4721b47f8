"""Stable Diffusion 3 and 3.5: their layers as Stability AI's code names them, and as diffusers does.

Facts from https://github.com/Stability-AI/sd3.5 (mmditx.py) and diffusers 0.42.1 (loaders/single_file_utils.py). The
last block's context_block has a modulation of two widths, shift and scale, which diffusers keeps as scale and shift;
every other modulation is the same in both.
"""

from __future__ import annotations

from draft.adapters.files.names.sites import Plan, Site

_EMBEDDERS = (
    Site("x_embedder.proj", ("pos_embed.proj",), inner=0),
    Site("context_embedder", ("context_embedder",), inner=0),
    Site("t_embedder.mlp.0", ("time_text_embed.timestep_embedder.linear_1",), inner=0),
    Site("t_embedder.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    Site("y_embedder.mlp.0", ("time_text_embed.text_embedder.linear_1",), inner=0),
    Site("y_embedder.mlp.2", ("time_text_embed.text_embedder.linear_2",)),
    Site("final_layer.linear", ("proj_out",), rows=(0,)),
    Site("final_layer.adaLN_modulation.1", ("norm_out.linear",), rows=(2,), swapped=True),
)


def _joint() -> tuple[Site, ...]:
    block = "transformer_blocks.#"
    sites = []
    for side, attention, qkv, out in (
        ("x_block", "attn", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_out.0"),
        ("x_block", "attn2", ("attn2.to_q", "attn2.to_k", "attn2.to_v"), "attn2.to_out.0"),
        ("context_block", "attn", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "attn.to_add_out"),
    ):
        members = tuple(f"{block}.{name}" for name in qkv)
        sites += [
            Site(f"joint_blocks.#.{side}.{attention}.qkv", members, rows=(1, 1, 1)),
            Site(f"joint_blocks.#.{side}.{attention}.proj", (f"{block}.{out}",)),
        ]
    for side, feed, norm in (("x_block", "ff", "norm1"), ("context_block", "ff_context", "norm1_context")):
        # The modulation has 6 widths, 9 where the block has a second attention, and 2 in the last block's context.
        modulation, linear = f"joint_blocks.#.{side}.adaLN_modulation.1", f"{block}.{norm}.linear"
        sites += [
            Site(f"joint_blocks.#.{side}.mlp.fc1", (f"{block}.{feed}.net.0.proj",), rows=(4,)),
            Site(f"joint_blocks.#.{side}.mlp.fc2", (f"{block}.{feed}.net.2",), inner=4),
            Site(modulation, (linear,), rows=(0,), swapped=side == "context_block"),
        ]
    return tuple(sites)


SD3 = Plan(
    title="Stable Diffusion 3",
    architecture="stable-diffusion-3",
    sites=(*_joint(), *_EMBEDDERS),
    widths={1536: {"transformer_blocks": 24}, 2432: {"transformer_blocks": 38}},
    marks=(".attn2.", "pos_embed."),
    native=("joint_blocks",),
)
"""The layers of Stable Diffusion 3 medium (width 1536), 3.5 medium (1536, second attention) and 3.5 large (2432)."""
