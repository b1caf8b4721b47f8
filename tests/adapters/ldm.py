"""Single-file checkpoints under the original code's names, small and random, to hold against diffusers' converters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WIDTH, TEXT = 8, 12
PREFIX = "model.diffusion_model."


def unet(*, levels: int = 2, depth: int = 1) -> dict[str, Tensor]:
    """A UNet of Stable Diffusion's layout, with attention in every level but the last."""
    shapes = dict(_unet_shapes(levels, depth))
    generator = torch.Generator().manual_seed(7)
    return {f"{PREFIX}{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def clip(prefix: str, *, layers: int = 2) -> dict[str, Tensor]:
    """A CLIP text encoder under transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (20, TEXT),
        "embeddings.position_embedding.weight": (16, TEXT),
    }
    for end in ("weight", "bias"):
        tail = (TEXT,) if end == "weight" else ()
        shapes[f"final_layer_norm.{end}"] = (TEXT,)
        for layer in range(layers):
            base = f"encoder.layers.{layer}"
            shapes |= {f"{base}.self_attn.{n}.{end}": (TEXT, *tail) for n in ("q_proj", "k_proj", "v_proj", "out_proj")}
            shapes |= {f"{base}.mlp.fc1.{end}": (24, *tail), f"{base}.mlp.fc2.{end}": (TEXT, *([24] if tail else []))}
            shapes |= {f"{base}.layer_norm{i}.{end}": (TEXT,) for i in (1, 2)}
    generator = torch.Generator().manual_seed(8)
    return {f"{prefix}text_model.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def open_clip(prefix: str, *, layers: int = 2) -> dict[str, Tensor]:
    """A CLIP text encoder under OpenCLIP's names: q, k and v in one, the projection transposed."""
    shapes = {
        "token_embedding.weight": (20, TEXT),
        "positional_embedding": (16, TEXT),
        "text_projection": (TEXT, 10),
        "ln_final.weight": (TEXT,),
        "ln_final.bias": (TEXT,),
    }
    for layer in range(layers):
        base = f"transformer.resblocks.{layer}"
        shapes |= {f"{base}.attn.in_proj_weight": (3 * TEXT, TEXT), f"{base}.attn.in_proj_bias": (3 * TEXT,)}
        shapes |= {f"{base}.attn.out_proj.weight": (TEXT, TEXT), f"{base}.attn.out_proj.bias": (TEXT,)}
        shapes |= {f"{base}.mlp.c_fc.weight": (24, TEXT), f"{base}.mlp.c_fc.bias": (24,)}
        shapes |= {f"{base}.mlp.c_proj.weight": (TEXT, 24), f"{base}.mlp.c_proj.bias": (TEXT,)}
        shapes |= {f"{base}.ln_{i}.{end}": (TEXT,) for i in (1, 2) for end in ("weight", "bias")}
    generator = torch.Generator().manual_seed(9)
    return {f"{prefix}{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _unet_shapes(levels: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for i, (rows, columns) in {0: (4 * WIDTH, WIDTH), 2: (4 * WIDTH, 4 * WIDTH)}.items():
        yield from _pair(f"time_embed.{i}", (rows, columns))
    yield from _pair("input_blocks.0.0", (WIDTH, 4, 3, 3))
    number = 1
    for level in range(levels):
        for _ in range(2):
            yield from _resnet(f"input_blocks.{number}.0", WIDTH)
            if level < levels - 1:
                yield from _attention(f"input_blocks.{number}.1", depth)
            number += 1
        if level < levels - 1:
            yield from _pair(f"input_blocks.{number}.0.op", (WIDTH, WIDTH, 3, 3))
            number += 1
    yield from _resnet("middle_block.0", WIDTH)
    yield from _attention("middle_block.1", depth)
    yield from _resnet("middle_block.2", WIDTH)
    for number in range(3 * levels):
        level, layer = divmod(number, 3)
        yield from _resnet(f"output_blocks.{number}.0", 2 * WIDTH)
        if level > 0:
            yield from _attention(f"output_blocks.{number}.1", depth)
        if layer == 2 and level < levels - 1:
            yield from _pair(f"output_blocks.{number}.{1 if level == 0 else 2}.conv", (WIDTH, WIDTH, 3, 3))
    yield from _pair("out.0", (WIDTH,))
    yield from _pair("out.2", (4, WIDTH, 3, 3))


def _resnet(path: str, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _pair(f"{path}.in_layers.0", (inputs,))
    yield from _pair(f"{path}.in_layers.2", (WIDTH, inputs, 3, 3))
    yield from _pair(f"{path}.emb_layers.1", (WIDTH, 4 * WIDTH))
    yield from _pair(f"{path}.out_layers.0", (WIDTH,))
    yield from _pair(f"{path}.out_layers.3", (WIDTH, WIDTH, 3, 3))
    if inputs != WIDTH:
        yield from _pair(f"{path}.skip_connection", (WIDTH, inputs, 1, 1))


def _attention(path: str, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _pair(f"{path}.norm", (WIDTH,))
    yield from _pair(f"{path}.proj_in", (WIDTH, WIDTH, 1, 1))
    yield from _pair(f"{path}.proj_out", (WIDTH, WIDTH, 1, 1))
    for block in range(depth):
        base = f"{path}.transformer_blocks.{block}"
        for name, inputs in (("attn1", WIDTH), ("attn2", TEXT)):
            yield f"{base}.{name}.to_q.weight", (WIDTH, WIDTH)
            yield f"{base}.{name}.to_k.weight", (WIDTH, inputs)
            yield f"{base}.{name}.to_v.weight", (WIDTH, inputs)
            yield from _pair(f"{base}.{name}.to_out.0", (WIDTH, WIDTH))
        yield from _pair(f"{base}.ff.net.0.proj", (8 * WIDTH, WIDTH))
        yield from _pair(f"{base}.ff.net.2", (WIDTH, 4 * WIDTH))
        for i in (1, 2, 3):
            yield from _pair(f"{base}.norm{i}", (WIDTH,))


def _pair(path: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{path}.weight", shape
    yield f"{path}.bias", shape[:1]
