"""FLUX.1: its layers as Black Forest Labs' code names them, and as diffusers does.

Facts from https://github.com/black-forest-labs/flux (src/flux/model.py, modules/layers.py) and diffusers 0.42.1
(loaders/single_file_utils.py). A single block's linear1 is q, k, v and the feed-forward's input in one; its linear2 is
diffusers' proj_out, whose input is the attention's output followed by the feed-forward's, in both.
"""

from __future__ import annotations

from draft.adapters.files.names.sites import Plan, Site

_EMBEDDERS = (
    Site("img_in", ("x_embedder",), inner=0),
    Site("txt_in", ("context_embedder",), inner=0),
    Site("time_in.in_layer", ("time_text_embed.timestep_embedder.linear_1",), inner=0),
    Site("time_in.out_layer", ("time_text_embed.timestep_embedder.linear_2",)),
    Site("vector_in.in_layer", ("time_text_embed.text_embedder.linear_1",), inner=0),
    Site("vector_in.out_layer", ("time_text_embed.text_embedder.linear_2",)),
    Site("guidance_in.in_layer", ("time_text_embed.guidance_embedder.linear_1",), inner=0),
    Site("guidance_in.out_layer", ("time_text_embed.guidance_embedder.linear_2",)),
    Site("final_layer.linear", ("proj_out",), rows=(0,)),
    Site("final_layer.adaLN_modulation.1", ("norm_out.linear",), rows=(2,), swapped=True),
)


def _double() -> tuple[Site, ...]:
    block = "transformer_blocks.#"
    sites = []
    for stream, qkv, out, feed, norm in (
        ("img", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm1"),
        ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context", "norm1_context"),
    ):
        members = tuple(f"{block}.attn.{name}" for name in qkv)
        sites += [
            Site(f"double_blocks.#.{stream}_attn.qkv", members, rows=(1, 1, 1)),
            Site(f"double_blocks.#.{stream}_attn.proj", (f"{block}.attn.{out}",)),
            Site(f"double_blocks.#.{stream}_mlp.0", (f"{block}.{feed}.net.0.proj",), rows=(4,)),
            Site(f"double_blocks.#.{stream}_mlp.2", (f"{block}.{feed}.net.2",), inner=4),
            Site(f"double_blocks.#.{stream}_mod.lin", (f"{block}.{norm}.linear",), rows=(6,)),
        ]
    return tuple(sites)


def _single() -> tuple[Site, ...]:
    block = "single_transformer_blocks.#"
    qkv = tuple(f"{block}.attn.to_{letter}" for letter in "qkv")
    return (
        Site("single_blocks.#.linear1", (*qkv, f"{block}.proj_mlp"), rows=(1, 1, 1, 4)),
        Site("single_blocks.#.linear2", (f"{block}.proj_out",), inner=5),
        Site("single_blocks.#.modulation.lin", (f"{block}.norm.linear",), rows=(3,)),
        # XLabs' files have q, k and v of a single block without the feed-forward.
        Site("single_blocks.#.qkv", qkv, rows=(1, 1, 1)),
    )


FLUX = Plan(
    title="FLUX.1",
    architecture="flux",
    sites=(*_double(), *_single(), *_EMBEDDERS),
    widths={3072: {"transformer_blocks": 19, "single_transformer_blocks": 38}},
    marks=("single_transformer_blocks.", "x_embedder", "guidance_embedder"),
    native=("double_blocks", "single_blocks"),
)
"""The layers of FLUX.1 (dev, schnell and what is made from them)."""
