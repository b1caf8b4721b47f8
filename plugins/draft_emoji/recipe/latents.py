"""Scenes encoded once, so that the denoiser's loop neither composes nor encodes."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from draft_emoji.recipe.checkpoint import save_tensors, write_whole
from draft_emoji.recipe.loop import Sitting
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import Composer

ONE_OBJECT = 0.75
"""Share of scenes with one object: small pairs teach a denoiser less in the same time."""

SHARD = 4000
"""Scenes in one file."""


@torch.no_grad()
def encode_scenes(sitting: Sitting, count: int) -> None:
    """Write shards of latents and captions; shards that exist are kept.

    Args:
        sitting: Reads ``vae/`` in its `out` and writes ``latents/``.
        count: Scenes in all, rounded up to whole shards.
    """
    folder = sitting.out / "latents"
    vae = AutoencoderKL.from_pretrained(sitting.out / "vae").to(sitting.device).eval()
    composer = Composer()
    for number in range(-(-count // SHARD)):
        target = folder / f"{number:04d}.safetensors"
        if target.exists():
            continue
        rng = np.random.default_rng((sitting.seed, 2, number))
        captions, parts = [], []
        for start in range(0, SHARD, 100):
            scenes = [composer.scene(rng, one_object=ONE_OBJECT) for _ in range(min(100, SHARD - start))]
            captions += [composer.caption(rng, scene) for scene in scenes]
            with sitting.autocast():
                means = vae.encode(pictures(scenes).to(sitting.device)).latent_dist.mean
            parts.append((means.float() * vae.config.scaling_factor).half().cpu())
        text = json.dumps(captions)
        write_whole(target.with_suffix(".json"), lambda part, text=text: part.write_text(text, encoding="utf-8"))
        save_tensors(target, {"latents": torch.cat(parts)})
        print(f"latents {number} std {torch.cat(parts).float().std():.3f}", flush=True)


def read_shards(folder: Path, limit: int) -> tuple[torch.Tensor, list[str]]:
    """All shards in one: latents float16 (n, 4, 16, 16) and n captions.

    Args:
        folder: The ``latents`` folder.
        limit: The most shards to read.
    """
    files = sorted(folder.glob("*.safetensors"))[:limit]
    if not files:
        raise SystemExit(f"no latents in {folder}: run the command `latents` first")
    latents = torch.cat([load_file(file)["latents"] for file in files])
    captions = [caption for file in files for caption in json.loads(file.with_suffix(".json").read_text("utf-8"))]
    return latents, captions
