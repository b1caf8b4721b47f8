"""A tiny model, two adapters for it, and a pipeline with a strip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from draft.adapters.files.formats import Adapter, Factors, write_adapter

PLACE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
FILE = """\
name: demo
stages:
  strip:
    kind: strip
    model: model
    prompts: [a cat, "a dog with a very long name that does not fit beside the pictures"]
    adapters:
      a: {from: a.safetensors}
    scales: [0, 1, 0.5]
    seeds: [7, 3]
    sampler: {num_inference_steps: 2, guidance_scale: 1}
    batch_size: 3
    rewards:
      kb: {use: jpeg_size, quality: 50}
      jpeg: {quality: 50}
"""


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model, adapters `a` and `b`, and a pipeline `demo.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        modules = {
            f"{PLACE}.{each}": Factors(
                torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator), 1.0
            )
            for each in ("to_q", "to_v")
        }
        write_adapter(Adapter(modules, "sd", {}), tmp_path / f"{name}.safetensors")
    (tmp_path / "demo.yaml").write_text(FILE)
    return tmp_path
