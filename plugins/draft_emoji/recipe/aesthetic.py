"""The aesthetic head: the LAION predictor's layers on the small CLIP, regressing how whole a picture is."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize
from transformers import CLIPModel

from draft_emoji.recipe.checkpoint import save_tensors
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.preference import degrade
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import Composer

BEST, WORST = 9.0, 1.0
"""Ratings of a whole picture and of one degraded as far as it goes; between them it is linear."""

SCENES = 6000
"""Scenes whose embeddings the head learns from, each at one level."""


class Head(nn.Module):
    """The linear layers of LAION's ``sac+logos+ava1-l14-linearMSE``, with its key names; there are no activations.

    Args:
        width: Length of a CLIP embedding; 768 for the published head.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Ratings (B,) of unit vectors (B, width)."""
        return self.layers(embeddings)[:, 0]


@torch.no_grad()
def rated(clip: CLIPModel, count: int, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Unit vectors of degraded scenes, shape (count, D), and their ratings, shape (count,)."""
    rng, composer = np.random.default_rng(seed), Composer()
    vectors, ratings = [], []
    for start in range(0, count, 100):
        scenes = [composer.scene(rng) for _ in range(min(100, count - start))]
        # A fifth is whole: the best rating must be met often.
        levels = torch.from_numpy(rng.random(len(scenes)) * (rng.random(len(scenes)) < 0.8)).float()
        images = degrade(pictures(scenes), levels, rng).to(clip.device)
        vectors.append(normalize(clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output), dim=-1))
        ratings.append(BEST + (WORST - BEST) * levels)
    return torch.cat(vectors).float(), torch.cat(ratings)


def train_aesthetic(sitting: Sitting, training: Training) -> None:
    """Train the head and write ``aesthetic_model/``: ``model.safetensors`` and ``config.json``.

    Args:
        sitting: Reads ``clip_model/`` in its `out`.
        training: The schedule.
    """
    clip = CLIPModel.from_pretrained(sitting.out / "clip_model").float().eval().to(sitting.device)
    vectors, ratings = rated(clip, SCENES, (sitting.seed, 12))
    ratings = ratings.to(sitting.device)
    torch.manual_seed(sitting.seed)
    head = Head(vectors.shape[1]).to(sitting.device)
    with torch.no_grad():
        head.layers[-1].get_parameter("bias").fill_(float(ratings.mean()))

    def loss_of(step: int) -> dict[str, Tensor]:
        head.train()
        rows = np.random.default_rng((sitting.seed, 13, step)).integers(len(vectors), size=training.batch)
        return {"mse": mse_loss(head(vectors[rows]), ratings[rows])}

    fit("aesthetic", sitting, training, {"aesthetic": head}, loss_of, every=500)
    folder = sitting.out / "aesthetic_model"
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "model.safetensors", head.state_dict())
    config = {"architecture": "LAION aesthetic predictor v2", "width": vectors.shape[1]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print("aesthetic on unseen scenes, correlation and mean error:", agreement(clip, head.eval()))


@torch.no_grad()
def agreement(clip: CLIPModel, head: Head, count: int = 1000) -> tuple[float, float]:
    """Correlation of ratings with the true ones on unseen scenes, and the mean absolute error in points."""
    vectors, ratings = rated(clip, count, (1_000_003, 6))
    predicted = head(vectors).cpu()
    return float(torch.corrcoef(torch.stack([predicted, ratings]))[0, 1]), float((predicted - ratings).abs().mean())


def load_head(folder: Path) -> Head:
    """The head of a shipped folder, in float32."""
    weights = load_file(folder / "model.safetensors")
    head = Head(weights["layers.0.weight"].shape[1])
    head.load_state_dict({key: value.float() for key, value in weights.items()})
    return head.eval()
