"""Which tensors of a model hold which modules: in diffusers' folders, and under the original code's names. No torch.

A tensor of the original code may hold several modules' weights, one below the other (q, k and v), with its halves in
another order, or transposed; each is a `Piece`. Facts on single files from diffusers 0.42.1
(loaders/single_file_utils.py), https://github.com/CompVis/stable-diffusion
(ldm/modules/diffusionmodules/openaimodel.py) and https://github.com/mlfoundations/open_clip (transformer.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from draft.adapters.files.names.text import canonical_text, text_path
from draft.adapters.files.names.transformers import locate, site_of
from draft.adapters.files.names.unet import unet_path

_DENOISERS = ("model.diffusion_model.", "diffusion_model.")
_HUGGING_FACE = {
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
}
# Stable Diffusion 2's projection is not used, and diffusers has none.
_OPEN_CLIP = {
    "cond_stage_model.model.": ("text_encoder", False),
    "conditioner.embedders.0.model.": ("text_encoder_2", True),
    "conditioner.embedders.1.model.": ("text_encoder_2", True),
}
_OPEN_CLIP_LAYERS = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_OPEN_CLIP_OTHERS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_CLIP_TOPS = ("encoder.layers.", "embeddings.", "final_layer_norm.")
_RESNET_NORMS = {"in_layers.0": "norm1", "out_layers.0": "norm2"}


@dataclass(frozen=True)
class Piece:
    """A part of one tensor of a model.

    Args:
        name: The tensor that diffusers has for it, with its component: `unet.mid_block.attentions.0.proj_in.weight`.
        rows: Its first row and the row behind its last, and of how many, in a unit that divides the rows.
        swapped: Whether its two halves are in the other order, if it has twice as many rows as columns.
        transposed: Whether it is the transposed matrix.
    """

    name: str
    rows: tuple[int, int, int] = (0, 1, 1)
    swapped: bool = False
    transposed: bool = False

    @property
    def module(self) -> str:
        """The module whose weight it is; empty where it is something else, such as a bias."""
        return self.name.removesuffix(".weight") if self.name.endswith(".weight") else ""


def folder_pieces(component: str, name: str) -> tuple[Piece, ...]:
    """What a tensor of a component's folder holds.

    Args:
        component: `unet`, `text_encoder`, ...
        name: The tensor's name.

    Returns:
        One piece.
    """
    return (Piece(f"{component}.{_text(name) if component.startswith('text_encoder') else name}"),)


def single_file_pieces(name: str) -> tuple[Piece, ...]:
    """What a tensor of a single-file checkpoint holds.

    Args:
        name: The tensor's name, of Stable Diffusion 1, 2, XL, 3, 3.5 or FLUX.1.

    Returns:
        Its pieces; one under the tensor's own name where diffusers' name is not known, as of autoencoders.

    Example:
        >>> single_file_pieces("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight")[1]
        Piece(name='text_encoder.text_model.encoder.layers.0.self_attn.k_proj.weight', rows=(1, 2, 3), ...
    """
    for prefix in (*_DENOISERS, ""):
        if name.startswith(prefix):
            return _denoiser(name.removeprefix(prefix), bare=not prefix) or _encoder(name) or (Piece(name),)
    return (Piece(name),)


def is_layer(module: str) -> bool:
    """Whether a module is a linear layer or a convolution, which a LoRA can change, by its name."""
    part, _, path = module.partition(".")
    if part.startswith("text_encoder"):
        return text_path(path.replace(".", "_")) is not None
    if part == "transformer":
        return locate(path) is not None
    return part == "unet" and unet_path(path.replace(".", "_")) is not None


def _denoiser(path: str, *, bare: bool) -> tuple[Piece, ...]:
    stem, _, kind = path.rpartition(".")
    if kind not in ("weight", "bias"):
        return ()
    if not bare and (module := unet_path(stem.replace(".", "_")) or _unet_norm(stem)) is not None:
        return (Piece(f"unet.{module}.{kind}"),)
    module = locate(stem)
    if module is None:
        return ()
    site, number = site_of(module) or (None, "")
    if site is None:
        return (Piece(f"transformer.{module}.{kind}"),)
    if site.swapped and kind == "bias":
        return ()
    pieces, start = [], 0
    total = sum(site.rows) if len(site.members) > 1 else 1
    for member, share in zip(site.members, site.rows if len(site.members) > 1 else (1,), strict=True):
        rows = (start, start := start + share, total)
        pieces.append(Piece(f"transformer.{member.replace('#', number)}.{kind}", rows, swapped=site.swapped))
    return tuple(pieces)


def _unet_norm(stem: str) -> str | None:
    """diffusers' path of a UNet's norm, by that of a layer beside it."""
    if stem == "out.0":
        return "conv_norm_out"
    head, _, last = stem.rpartition(".")
    if (pair := f"{head.rpartition('.')[2]}.{last}") in _RESNET_NORMS:
        beside = unet_path(f"{stem.removesuffix(pair)}emb_layers.1".replace(".", "_"))
        return beside and beside.replace("time_emb_proj", _RESNET_NORMS[pair])
    if last in ("norm", "norm1", "norm2", "norm3"):
        beside = unet_path(f"{head}.proj_in".replace(".", "_"))
        return beside and f"{beside.removesuffix('proj_in')}{last}"
    return None


def _encoder(name: str) -> tuple[Piece, ...]:
    for prefix, part in _HUGGING_FACE.items():
        if name.startswith(prefix):
            return (Piece(f"{part}.{_text(name.removeprefix(prefix))}"),)
    for prefix, (part, projects) in _OPEN_CLIP.items():
        if name.startswith(prefix):
            return _open_clip(name.removeprefix(prefix), part, projects=projects)
    return ()


def _open_clip(path: str, part: str, *, projects: bool) -> tuple[Piece, ...]:
    if path == "text_projection" and projects:
        return (Piece(f"{part}.text_projection.weight", transposed=True),)
    if path in _OPEN_CLIP_OTHERS:
        return (Piece(f"{part}.{_OPEN_CLIP_OTHERS[path]}"),)
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", path)
    if match is None:
        return ()
    layer = f"{part}.text_model.encoder.layers.{match[1]}"
    if match[2] == "attn.in_proj":
        names = ("q_proj", "k_proj", "v_proj")
        return tuple(Piece(f"{layer}.self_attn.{n}.{match[3]}", (i, i + 1, 3)) for i, n in enumerate(names))
    inner = _OPEN_CLIP_LAYERS.get(match[2])
    return () if inner is None else (Piece(f"{layer}.{inner}.{match[3]}"),)


def _text(path: str) -> str:
    """A text encoder's tensor with the level `text_model.`, which transformers 5 dropped."""
    return f"text_model.{path}" if path.startswith(_CLIP_TOPS[1:]) else canonical_text(path)
