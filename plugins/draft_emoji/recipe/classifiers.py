"""Two classifiers of one object, of two families: one to be attacked, one to see whether an attack transfers."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from draft_emoji.recipe.clip import MEAN, STD
from draft_emoji.recipe.judge import blemish, rank
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import SIZE, Composer
from draft_emoji.vocabulary import concepts

UNSEEN = {
    "orange": (235, 140, 40),
    "teal": (30, 130, 130),
    "navy": (30, 45, 100),
    "lime": (160, 205, 60),
    "beige": (215, 195, 160),
    "maroon": (110, 25, 45),
}
"""Backgrounds that no training has seen."""


def _labels() -> dict[str, dict]:
    names = concepts()
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def make_resnet() -> ResNetForImageClassification:
    """An untrained ResNet of about a million parameters for 64 px pictures in [-1, 1]."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 112, 176],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            **_labels(),
        )
    )


def make_convnext() -> ConvNextForImageClassification:
    """An untrained ConvNeXt of about a million parameters for 64 px pictures in [-1, 1]."""
    return ConvNextForImageClassification(
        ConvNextConfig(
            image_size=SIZE,
            patch_size=4,
            hidden_sizes=[40, 80, 144, 192],
            depths=[1, 1, 2, 1],
            drop_path_rate=0.0,
            **_labels(),
        )
    )


CLASSIFIERS: dict[str, Callable[[], PreTrainedModel]] = {"resnet": make_resnet, "convnext": make_convnext}
"""Name of the shipped folder to the untrained network."""


def image_processor() -> ConvNextImageProcessor:
    """The processor of both, as their published models have it: 64 px, nothing cropped away, [-1, 1]."""
    return ConvNextImageProcessor(
        size={"shortest_edge": SIZE}, crop_pct=1.0, image_mean=list(MEAN), image_std=list(STD)
    )


def train_classifier(name: str, sitting: Sitting, training: Training) -> None:
    """Train one classifier and write ``NAME_model/`` as a transformers folder.

    Args:
        name: A key of `CLASSIFIERS`.
        sitting: Where and how long.
        training: The schedule.
    """
    torch.manual_seed(sitting.seed)
    network = CLASSIFIERS[name]().to(sitting.device, memory_format=torch.channels_last)
    composer = Composer()
    number = {"resnet": 9, "convnext": 10}[name]

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        network.train()
        rng = np.random.default_rng((sitting.seed, number, step))
        # Half of the backgrounds are of any colour, so that the named ten mean nothing to a classifier.
        composer.colours["any"] = tuple(int(part) for part in rng.integers(0, 256, 3))
        labels = rng.integers(len(composer.names), size=training.batch)
        scenes = [
            composer.scene(rng, (composer.names[label],), background="any" if rng.random() < 0.5 else None)
            for label in labels
        ]
        images = blemish(pictures(scenes), rng).to(sitting.device)
        with sitting.autocast():
            logits = network(images.contiguous(memory_format=torch.channels_last)).logits
        return {"ce": cross_entropy(logits.float(), torch.from_numpy(labels).to(sitting.device))}

    fit(name, sitting, training, {name: network}, loss_of, weight_decay=0.05)
    folder = sitting.out / f"{name}_model"
    network.eval().save_pretrained(folder)
    image_processor().save_pretrained(folder)
    print(f"{name} on unseen places, sizes and backgrounds, top-1 and top-5:", accuracy(network))


@torch.no_grad()
def accuracy(network: PreTrainedModel, count: int = 2000) -> tuple[float, float]:
    """Top-1 and top-5 on unseen renders of one object, on backgrounds of unseen colours."""
    composer, rng = Composer(), np.random.default_rng((1_000_003, 4))
    composer.colours = UNSEEN
    names = concepts()
    labels = [number % len(names) for number in range(count)]
    scenes = [composer.scene(rng, labels=(names[label],)) for label in labels]
    return rank(network, pictures(scenes).to(network.device), torch.tensor(labels))
