"""ImageReward on the BLIP of transformers: its published weights under their names, and a layout of our own.

A folder of our own layout holds a tokenizer's files, `config.json` and `model.safetensors`. The configuration has
`model_type` "image_reward"; `vision_config` and `text_config`, arguments of transformers' `BlipVisionConfig` and
`BlipTextConfig`; `head`, the widths of the head's hidden layers; `mean` and `std`, by which the head's output is
standardised; `max_length`, the tokens of a prompt. The tensors are those of `build(config)`: `vision.*` and `text.*`
as in `BlipVisionModel` and `BlipTextModel`, and `head.0.weight`, `head.0.bias`, `head.1.weight` and so on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import draft
from draft.rewards.reading import ReadingScore
from draft_rewards._blip import padded
from draft_rewards._image_reward_published import convert
from draft_rewards._loading import TOKENS_AND_SIZES, explained, hub_options, load_tokenizer
from draft_rewards._preprocessing import Preprocessing
from draft_rewards._text import reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from draft.types import Images, Scores

PUBLISHED_FILE = "ImageReward.pt"
MODEL_TYPE = "image_reward"
KEYS = ("vision_config", "text_config", "head", "mean", "std", "max_length")


def load_image_reward(
    model: str, *, tokenizer: str, revision: str = "", device: torch.device, where: str
) -> ReadingScore:
    """Load an ImageReward, published or of our own layout.

    Args:
        model: A registered name, a folder, a file of published weights, or a hub id.
        tokenizer: Where the tokenizer comes from; empty: from `model`.
        revision: A hub revision of `model`; empty: the pinned one, see `_loading.hub_options`.
        device: Where to put it.
        where: The reward's name, for errors.

    Returns:
        A function from images, float (B, 3, H, W) in [0, 1], and B texts to float32 (B,).

    Raises:
        DraftError: There is no such model here, or its weights are missing or of another architecture.
    """
    import torch

    others = {tokenizer: TOKENS_AND_SIZES}
    with explained("ImageReward model", model, where=where, revision=revision, others=others):
        config, tensors = read(model, revision)
        network = assemble(config, tensors).to(device)
    source, meant = tokenizer or model, "" if tokenizer else revision
    # Not AutoTokenizer, to which `image_reward` is no model type.
    encode = load_tokenizer(
        source, name="BertTokenizer", revision=meant, what="tokenizer", where=where, files=TOKENS_AND_SIZES
    )
    side, padding = config["vision_config"]["image_size"], config["text_config"]["pad_token_id"]

    @lru_cache(maxsize=8192)
    def tokens(prompt: str) -> list[int]:
        return encode(prompt, truncation=True, max_length=config["max_length"])["input_ids"]

    def score(images: Images, prompts: Sequence[str]) -> Scores:
        states = network["vision"](pixel_values=preprocess(images.float(), side)).last_hidden_state
        ids, mask = padded([tokens(prompt) for prompt in prompts], padding, images.device)
        read = network["text"](
            input_ids=ids,
            attention_mask=mask,
            position_ids=torch.arange(ids.shape[1], device=ids.device)[None],
            encoder_hidden_states=states,
            is_decoder=False,
        ).last_hidden_state
        return (network["head"](read[:, 0])[:, 0] - config["mean"]) / config["std"]

    return ReadingScore(score, (reading(encode, config["max_length"], lambda texts: texts),))


def read(model: str, revision: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an ImageReward's configuration and weights.

    Args:
        model: A registered name, a folder, a file of published weights, or a hub id.
        revision: A hub revision; empty: the pinned one, see `_loading.hub_options`.

    Returns:
        The configuration and the tensors of our own layout.

    Raises:
        ValueError: The files hold something else.
    """
    import torch
    from safetensors.torch import load_file
    from transformers.utils.hub import cached_file

    path, options = draft.model_path(model), hub_options(revision, model)
    if not Path(path).is_file():
        config_file = cached_file(path, "config.json", _raise_exceptions_for_missing_entries=False, **options)
        config = json.loads(Path(config_file).read_text(encoding="utf-8")) if config_file else {}
        if config.get("model_type") == MODEL_TYPE:
            if lacking := [key for key in KEYS if key not in config]:
                raise ValueError(f"its config.json lacks {lacking[0]!r}")
            return config, load_file(str(cached_file(path, "model.safetensors", **options)))
        path = str(cached_file(path, PUBLISHED_FILE, **options))
    if path.endswith(".safetensors"):
        return convert(load_file(path))
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{Path(path).name} is not a file of weights alone") from error
    if not isinstance(weights, dict):
        raise ValueError(f"it must hold a state dict (got {type(weights).__name__})")
    return convert(weights)


def build(config: Mapping[str, Any]) -> torch.nn.ModuleDict:
    """The modules of a configuration, with fresh weights.

    Args:
        config: A configuration of our own layout.

    Returns:
        `vision`, a `BlipVisionModel`; `text`, a `BlipTextModel` with cross attention; `head`, linear layers one after
        another without activations.
    """
    from torch import nn
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    text = BlipTextConfig(**config["text_config"])
    widths = [text.hidden_size, *config["head"], 1]
    return nn.ModuleDict(
        {
            "vision": BlipVisionModel(BlipVisionConfig(**config["vision_config"])),
            "text": BlipTextModel(text, add_pooling_layer=False),
            "head": nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))),
        }
    )


def assemble(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> torch.nn.ModuleDict:
    """The modules of a configuration with these weights, frozen, in evaluation mode and float32.

    Args:
        config: A configuration of our own layout.
        tensors: Its tensors.

    Returns:
        As `build`.

    Raises:
        ValueError: A tensor is missing, of another shape, or too many.
    """
    import torch

    # Without memory and without a draw from the random generators; what is no weight is made below.
    with torch.device("meta"):
        network = build(config)
    wanted = network.state_dict()
    if wrong := sorted(set(wanted) ^ set(tensors)):
        missing = "lack" if wrong[0] in wanted else "hold"
        raise ValueError(f"its weights {missing} {wrong[0]!r}, {len(wrong)} names are wrong in all")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name!r} must be {tuple(wanted[name].shape)} (got {tuple(tensor.shape)})")
    network.load_state_dict(dict(tensors), assign=True)
    embeddings: Any = network["text"].embeddings
    embeddings.position_ids = torch.arange(embeddings.position_embeddings.num_embeddings)[None]
    return network.float().eval().requires_grad_(False)


def preprocess(images: Images, side: int) -> Tensor:
    """What the published transform does: shorter side to `side`, bicubic, central square, CLIP's mean and deviation.

    Args:
        images: Float (B, 3, H, W) in [0, 1].
        side: Of the square that the network wants.

    Returns:
        Float (B, 3, side, side).
    """
    resized = Preprocessing(shortest_edge=side, cropped=(0, 0))(images)
    # torchvision, with which ImageReward was trained, rounds half pixels to even numbers; transformers rounds down.
    top, left = (round((length - side) / 2) for length in resized.shape[-2:])
    return resized[..., top : top + side, left : left + side]
