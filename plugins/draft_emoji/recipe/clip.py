"""The CLIP: an image tower trained towards the text tower, which stays locked."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from draft_emoji.recipe.judge import blemish, targets
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.text import WIDTH
from draft_emoji.recipe.tokenizer import encode
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import Composer, Scene, names_colour
from draft_emoji.vocabulary import concepts

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Of the image processor: pictures in [0, 1] become [-1, 1]."""


def make_clip(tower: CLIPTextModel) -> CLIPModel:
    """A CLIP whose text tower carries the given weights, and whose image tower is untrained."""
    vision = CLIPVisionConfig(
        image_size=64,
        patch_size=8,
        hidden_size=144,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=4,
        projection_dim=WIDTH,
    )
    text = {**tower.config.to_dict(), "projection_dim": WIDTH}
    config = CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=WIDTH)
    clip = CLIPModel(config)
    inner = getattr(tower, "text_model", tower)
    clip.text_model.load_state_dict(inner.state_dict())
    return clip


def image_processor() -> CLIPImageProcessor:
    """The processor that matches `make_clip`: 64 px, [-1, 1]."""
    return CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=list(MEAN), image_std=list(STD)
    )


def wrong_caption(rng: np.random.Generator, composer: Composer, scene: Scene) -> str:
    """A caption that differs from a true one in the colour or in one object: a hard negative."""
    labels, background = list(scene.labels), scene.background
    if rng.random() < 0.3:
        other_colours = [colour for colour in composer.colours if colour != background]
        background = other_colours[rng.integers(len(other_colours))]
    else:
        other_names = [name for name in composer.names if name not in labels]
        labels[rng.integers(len(labels))] = other_names[rng.integers(len(other_names))]
    described = Scene(scene.image, tuple(labels), scene.boxes, background)
    caption = composer.caption(rng, described)
    while background != scene.background and not names_colour(caption):
        caption = composer.caption(rng, described)
    return caption


def truth(scenes: list[Scene], captions: list[str]) -> torch.Tensor:
    """Which captions, each written for the scene of the same number, are true of which scenes.

    Returns:
        Float32 of 0 and 1, shape (B, B), scenes in rows; the diagonal is 1.
    """
    true = torch.zeros(len(scenes), len(scenes))
    for column, (writer, caption) in enumerate(zip(scenes, captions, strict=True)):
        for row, scene in enumerate(scenes):
            same = set(scene.labels) == set(writer.labels)
            true[row, column] = same and (scene.background == writer.background or not names_colour(caption))
    return true


def train_clip(sitting: Sitting, training: Training) -> None:
    """Train the image tower and both projections, and write ``clip_model/`` as a transformers folder.

    Args:
        sitting: Reads ``text_encoder/`` and ``tokenizer/`` in its `out`.
        training: The schedule.
    """
    device = sitting.device
    tokenizer = CLIPTokenizer.from_pretrained(sitting.out / "tokenizer")
    torch.manual_seed(sitting.seed)
    clip = make_clip(CLIPTextModel.from_pretrained(sitting.out / "text_encoder")).to(device)
    clip.text_model.requires_grad_(False)
    # A linear reading of the objects speeds the image tower up; it is dropped afterwards.
    reading = nn.Linear(clip.config.vision_config.hidden_size, len(concepts())).to(device)
    composer = Composer()

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((sitting.seed, 7, step))
        scenes = [composer.scene(rng) for _ in range(training.batch)]
        captions = [composer.caption(rng, scene) for scene in scenes]
        wrong = [wrong_caption(rng, composer, scene) for scene in scenes]
        images = blemish(pictures(scenes), rng).to(device)
        with torch.no_grad():
            pooled = clip.text_model(encode(tokenizer, captions + wrong).to(device)).pooler_output
        with sitting.autocast():
            pooled_images = clip.vision_model(images).pooler_output
            image = clip.visual_projection(pooled_images)
        text_vectors = normalize(clip.text_projection(pooled), dim=-1)
        scores = normalize(image.float(), dim=-1) @ text_vectors.T * clip.logit_scale.exp().clamp(max=100)
        true = truth(scenes, captions).to(device)
        # Each scene also meets its own wrong caption; those of the others may be true of it, so they are left out.
        own_wrong = scores[:, len(scenes) :].diagonal()[:, None]
        to_text = log_softmax(torch.cat([scores[:, : len(scenes)], own_wrong], 1), 1)[:, : len(scenes)]
        to_image = log_softmax(scores[:, : len(scenes)], 0)
        return {
            "to_text": -(to_text * true / true.sum(1, keepdim=True)).sum(1).mean(),
            "to_image": -(to_image * true / true.sum(0, keepdim=True)).sum(0).mean(),
            "objects": 0.3
            * binary_cross_entropy_with_logits(
                reading(pooled_images.float()), targets(scenes).to(device), reduction="sum"
            )
            / len(scenes),
        }

    fit("clip", sitting, training, {"clip": clip, "reading": reading}, loss_of, weight_decay=0.05)
    folder = sitting.out / "clip_model"
    clip.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    print("clip: the right caption among 100:", retrieval(clip, tokenizer, device))


@torch.no_grad()
def retrieval(clip: CLIPModel, tokenizer: CLIPTokenizer, device: str, rounds: int = 5) -> float:
    """Share of unseen scenes whose own caption scores highest among 100 captions of different scenes."""
    composer, rng = Composer(), np.random.default_rng((1_000_003, 2))
    hits = []
    for _ in range(rounds):
        scenes = [composer.scene(rng) for _ in range(100)]
        captions = [composer.caption(rng, scene) for scene in scenes]
        pixels = pictures(scenes).to(device)
        scores = clip(input_ids=encode(tokenizer, captions).to(device), pixel_values=pixels).logits_per_image.cpu()
        # A caption that is also true of another scene counts as right there.
        hits.append(truth(scenes, captions).gather(1, scores.argmax(1, keepdim=True)).mean())
    return float(torch.stack(hits).mean())
