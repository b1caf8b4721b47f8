"""A model of the family with random weights, always the same ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from draft_pocket_flow.networks import PocketDecoder, PocketTextEncoder, PocketTransformer

CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {
        "channels": 16,
        "width": 32,
        "heads": 2,
        "blocks": 2,
        "text_width": 24,
        "pooled_width": 16,
        "guidance": True,
    },
    "vae": {"channels": 4, "width": 12, "stages": 2, "scaling_factor": 0.9, "shift_factor": 0.1},
    "text_encoder": {"words": 512, "length": 16, "width": 24, "pooled_width": 16},
}
"""Component to the arguments of its class."""


def write(folder: Path, *, seed: int = 0) -> Path:
    """Write a model of 0.2 MB, as `load` reads it.

    Args:
        folder: An empty folder, or one that does not exist yet.
        seed: Of the weights.

    Returns:
        The folder.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = {"transformer": PocketTransformer, "vae": PocketDecoder, "text_encoder": PocketTextEncoder}
    for component, kind in kinds.items():
        network = kind(**CONFIGS[component])
        _draw(network, generator)
        place = folder / component
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(CONFIGS[component], indent=1) + "\n", encoding="utf-8")
        save_file(network.state_dict(), place / "model.safetensors")
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "config.json").write_text('{"hash": "crc32"}\n', encoding="utf-8")
    index = {name: ["draft_pocket_flow.networks", kind.__name__] for name, kind in kinds.items()}
    index |= {"tokenizer": ["draft_pocket_flow.networks", "word_numbers"]}
    content = {"_class_name": "PocketFlowPipeline", **index, "default_size": [32, 32]}
    (folder / "model_index.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


@torch.no_grad()
def _draw(network: nn.Module, generator: torch.Generator) -> None:
    for parameter in network.parameters():
        spread = 1 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.1
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
