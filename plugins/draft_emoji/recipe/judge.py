"""The judge: a multi-label classifier of another family than any reward, trained on real renders only."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate
from transformers import RegNetConfig, RegNetForImageClassification

from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import Composer, Scene
from draft_emoji.vocabulary import concepts


def make_judge() -> RegNetForImageClassification:
    """An untrained RegNet of well under a million parameters for 64 px pictures in [-1, 1]."""
    names = concepts()
    return RegNetForImageClassification(
        RegNetConfig(
            embedding_size=24,
            hidden_sizes=[48, 96, 192, 256],
            depths=[1, 2, 3, 1],
            groups_width=16,
            layer_type="y",
            # The picture is small already: the first stage keeps its 32 x 32 cells, the last has 4 x 4.
            downsample_in_first_stage=False,
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
            problem_type="multi_label_classification",
        )
    )


def blemish(true: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Soften, tint and grain pictures a little, so that a generated picture is judged by its object.

    Args:
        true: Pictures in [-1, 1], shape (B, 3, 64, 64).
        rng: Where the choices come from.

    Returns:
        The same shape; half of the pictures softened to between 24 and 64 px.
    """
    count = len(true)
    side = int(rng.integers(12, 32)) * 2
    small = interpolate(true, size=side, mode="bilinear", antialias=True)
    soft = interpolate(small, size=64, mode="bilinear")
    chosen = torch.from_numpy(rng.random(count) < 0.5).view(-1, 1, 1, 1)
    softened = torch.where(chosen, soft, true)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 3, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(rng.normal(0, 0.08, (count, 3, 1, 1)).astype(np.float32))
    grain = torch.from_numpy(rng.standard_normal(softened.shape, dtype=np.float32))
    # Blotches of 8 px look like a denoiser's leftovers more than grain of one pixel does.
    blotch = interpolate(avg_pool2d(grain, 8) * 8, size=64, mode="bilinear")
    strength = torch.from_numpy(rng.uniform(0, 0.08, (count, 2, 1, 1, 1)).astype(np.float32))
    return (softened * gain + shift + strength[:, 0] * grain + strength[:, 1] * blotch).clamp(-1, 1)


def targets(scenes: list[Scene]) -> torch.Tensor:
    """Which concepts each scene shows: float32 of 0 and 1, shape (B, concepts)."""
    index = {name: number for number, name in enumerate(concepts())}
    shown = torch.zeros(len(scenes), len(index))
    for row, scene in enumerate(scenes):
        shown[row, [index[label] for label in scene.labels]] = 1
    return shown


def train_judge(sitting: Sitting, training: Training) -> None:
    """Train the judge and write ``judge_model/`` as a transformers folder.

    Args:
        sitting: Where and how long.
        training: The schedule.
    """
    torch.manual_seed(sitting.seed)
    judge = make_judge().to(sitting.device, memory_format=torch.channels_last)
    composer = Composer()

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        judge.train()
        rng = np.random.default_rng((sitting.seed, 6, step))
        scenes = [composer.scene(rng, one_object=0.5) for _ in range(training.batch)]
        images = blemish(pictures(scenes), rng).to(sitting.device)
        with sitting.autocast():
            logits = judge(images.contiguous(memory_format=torch.channels_last)).logits
        shown = targets(scenes).to(sitting.device)
        # Summed over concepts: the mean would shrink the gradient by the size of the vocabulary.
        return {"bce": binary_cross_entropy_with_logits(logits.float(), shown, reduction="sum") / len(scenes)}

    fit("judge", sitting, training, {"judge": judge}, loss_of, weight_decay=0.02)
    judge.eval().save_pretrained(sitting.out / "judge_model")
    print("judge on unseen single-object renders, top-1 and top-5:", accuracy(judge, sitting.device))


@torch.no_grad()
def accuracy(judge: RegNetForImageClassification, device: str, count: int = 2000) -> tuple[float, float]:
    """Top-1 and top-5 on unseen renders with one object, clean ones."""
    composer, rng = Composer(), np.random.default_rng((1_000_003, 1))
    names = concepts()
    scenes = [composer.scene(rng, labels=(names[i % len(names)],)) for i in range(count)]
    labels = torch.arange(count) % len(names)
    return rank(judge, pictures(scenes).to(device), labels)


@torch.no_grad()
def rank(judge: RegNetForImageClassification, images: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Share of pictures whose wanted concept is the judge's first answer, and among its first five.

    Args:
        judge: The classifier.
        images: In [-1, 1], shape (B, 3, 64, 64).
        wanted: Index of the concept, int64, shape (B,).
    """
    logits = torch.cat([judge(part).logits.cpu() for part in images.split(128)])
    order = logits.argsort(-1, descending=True)[:, :5]
    hits = order == wanted[:, None]
    return float(hits[:, 0].float().mean()), float(hits.any(1).float().mean())


@torch.no_grad()
def both_found(judge: RegNetForImageClassification, images: torch.Tensor, wanted: torch.Tensor, first: int) -> float:
    """Share of pictures of two objects whose two concepts are both among the judge's first answers.

    Args:
        judge: The classifier.
        images: In [-1, 1], shape (B, 3, 64, 64).
        wanted: Indices of the concepts, int64, shape (B, 2).
        first: How many answers count.
    """
    order = judge(images).logits.argsort(-1, descending=True)[:, :first]
    return float((order[:, :, None] == wanted[:, None, :]).any(1).all(1).float().mean())


def load_judge(folder: Path) -> RegNetForImageClassification:
    """The judge of a transformers folder, in float32."""
    return RegNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
