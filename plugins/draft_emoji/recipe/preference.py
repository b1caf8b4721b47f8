"""The preference: a CLIP that prefers whole pictures that show what their caption says."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, logsigmoid, normalize
from transformers import CLIPModel, CLIPTokenizer

from draft_emoji.recipe.clip import image_processor
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.tokenizer import encode
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import Composer

LEVELS = (0.2, 0.4, 0.7)
"""Degradations at which the figures are taken."""

WRONG = 0.4
"""Share of pairs in which the worse picture is whole, but shows something else than its caption says."""


def degrade(images: Tensor, levels: Tensor, rng: np.random.Generator) -> Tensor:
    """Soften, stain and fade pictures, the more the higher the level; at 0 they stay as they are.

    Args:
        images: In [-1, 1], shape (B, 3, 64, 64).
        levels: In [0, 1], shape (B,).
        rng: Where the stains come from.

    Returns:
        The same shape and range.
    """
    level = levels.to(images).view(-1, 1, 1, 1)
    soft = torch.cat(
        [
            interpolate(interpolate(image[None], size=side, mode="bilinear", antialias=True), size=64, mode="bilinear")
            for image, side in zip(images, (64 - 52 * levels).round().int().tolist(), strict=True)
        ]
    )
    grain = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images)
    blotch = interpolate(avg_pool2d(grain, 8) * 8, size=64, mode="bilinear")
    speck = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images)
    faded = soft * (1 - 0.5 * level) + soft.mean((2, 3), keepdim=True) * 0.5 * level
    return (faded + level * (0.35 * blotch + 0.15 * speck)).clamp(-1, 1)


def preference(clip: CLIPModel, images: Tensor, pooled: Tensor) -> Tensor:
    """PickScore's s(x, c) = exp(scale) * cosine (arXiv 2305.01569) of B pictures and the pooled states of B texts."""
    image_vectors = normalize(
        clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output).float(), dim=-1
    )
    text_vectors = normalize(clip.text_projection(pooled).float(), dim=-1)
    return clip.logit_scale.exp() * (image_vectors * text_vectors).sum(-1)


def train_preference(sitting: Sitting, training: Training) -> None:
    """Train the image tower and both projections on pairs, and write ``preference_model/`` as a transformers folder.

    The loss is PickScore's: -log sigmoid(s(better, c) - s(worse, c)).

    Args:
        sitting: Reads ``clip_model/`` and ``tokenizer/`` in its `out`.
        training: The schedule.
    """
    device = sitting.device
    tokenizer = CLIPTokenizer.from_pretrained(sitting.out / "tokenizer")
    torch.manual_seed(sitting.seed)
    clip = CLIPModel.from_pretrained(sitting.out / "clip_model").float().to(device)
    clip.text_model.requires_grad_(False)
    composer = Composer()

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((sitting.seed, 11, step))
        better, worse, captions = pairs(composer, rng, training.batch, rng.uniform(0.05, 1, training.batch))
        with torch.no_grad():
            pooled = clip.text_model(encode(tokenizer, captions).to(device)).pooler_output
        with sitting.autocast():
            scores = preference(clip, torch.cat([better, worse]).to(device), pooled.repeat(2, 1))
        return {"pairs": -logsigmoid(scores[: training.batch] - scores[training.batch :]).mean()}

    fit("preference", sitting, training, {"preference": clip}, loss_of, weight_decay=0.05)
    folder = sitting.out / "preference_model"
    clip.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    print("preference: the better picture wins at levels", LEVELS, "and over a wrong one:", wins(clip, tokenizer))


def pairs(
    composer: Composer, rng: np.random.Generator, count: int, levels: np.ndarray, wrong: float = WRONG
) -> tuple[Tensor, Tensor, list[str]]:
    """Pairs of pictures with one caption each, true of the better one.

    Args:
        composer: Where scenes come from.
        rng: Where choices come from.
        count: B.
        levels: Degradation of the worse picture where it shows the same scene, shape (B,).
        wrong: Share of pairs whose worse picture is a whole one with another object in it.

    Returns:
        Better and worse pictures in [-1, 1], shape (B, 3, 64, 64), and B captions.
    """
    scenes = [composer.scene(rng) for _ in range(count)]
    better = pictures(scenes)
    worse = degrade(better, torch.from_numpy(levels).float(), rng)
    for row in np.flatnonzero(rng.random(count) < wrong):
        worse[row] = pictures([composer.scene(rng, _another(composer, rng, scenes[row].labels))])[0]
    return better, worse, [composer.caption(rng, scene) for scene in scenes]


def _another(composer: Composer, rng: np.random.Generator, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The same concepts but for one."""
    changed = list(labels)
    other_names = [name for name in composer.names if name not in labels]
    changed[rng.integers(len(changed))] = other_names[rng.integers(len(other_names))]
    return tuple(changed)


@torch.no_grad()
def wins(clip: CLIPModel, tokenizer: CLIPTokenizer, count: int = 1000) -> tuple[float, ...]:
    """Share of unseen pairs in which the better picture scores higher: at each of `LEVELS`, and against a wrong one."""
    shares = []
    for number, level in enumerate((*LEVELS, 0.0)):
        rng = np.random.default_rng((1_000_003, 5, number))
        whole = level > 0
        better, worse, captions = pairs(Composer(), rng, count, np.full(count, level), wrong=0.0 if whole else 1.0)
        pooled = clip.text_model(encode(tokenizer, captions).to(clip.device)).pooler_output
        scores = [
            torch.cat([preference(clip, *batch) for batch in zip(side.split(100), pooled.split(100), strict=True)])
            for side in (better.to(clip.device), worse.to(clip.device))
        ]
        shares.append(float((scores[0] > scores[1]).float().mean()))
    return tuple(shares)
