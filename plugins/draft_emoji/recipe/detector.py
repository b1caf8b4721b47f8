"""The detector: an OWL-ViT that finds what a text names, on the frozen text tower and the CLIP's image tower."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from transformers import CLIPModel, CLIPTokenizer, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor

from draft_emoji.recipe.clip import MEAN, STD
from draft_emoji.recipe.judge import blemish
from draft_emoji.recipe.loop import Sitting, fit
from draft_emoji.recipe.presets import Training
from draft_emoji.recipe.tokenizer import encode
from draft_emoji.recipe.vae import pictures
from draft_emoji.scenes import SIZE, Composer, Scene
from draft_emoji.vocabulary import entries

QUERIES = ("{word}", "{a}", "a photo of {a}")
"""How a query may be said."""

SHARPNESS = 15.0
"""Of the softmax in which a cell names its object; cosines lie in [-1, 1]."""


def make_detector(clip: CLIPModel) -> OwlViTForObjectDetection:
    """An OWL-ViT that starts from a CLIP's towers; its heads are untrained.

    Args:
        clip: The small CLIP; both towers have the layout of OWL-ViT's.

    Returns:
        The detector, which says nothing is anywhere: scores near 0.01, boxes around their cells.
    """
    text_config, vision_config = clip.config.text_config, clip.config.vision_config
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    text = {
        name: getattr(text_config, name) for name in (*shared, "vocab_size", "max_position_embeddings", "bos_token_id")
    }
    vision = {name: getattr(vision_config, name) for name in (*shared, "image_size", "patch_size")}
    # The end token pads, as it does everywhere in this world: pooling takes the first of the highest ids.
    ends = {"eos_token_id": text_config.eos_token_id, "pad_token_id": text_config.eos_token_id}
    config = OwlViTConfig(text_config=text | ends, vision_config=vision, projection_dim=text_config.hidden_size)
    detector = OwlViTForObjectDetection(config)
    model = detector.owlvit
    model.text_model.load_state_dict(clip.text_model.state_dict())
    tower = {
        key.replace("pre_layrnorm", "pre_layernorm"): value for key, value in clip.vision_model.state_dict().items()
    }
    model.vision_model.load_state_dict(tower)
    model.text_projection.load_state_dict(clip.text_projection.state_dict())
    model.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    head = detector.class_head
    with torch.no_grad():
        # logit = (cosine + shift) * (elu(scale) + 1): begin at (0 - 0.5) * 10.
        for linear, start in ((head.logit_shift, -0.5), (head.logit_scale, 9.0)):
            linear.weight.zero_()
            linear.bias.fill_(start)
        detector.box_head.dense2.weight.zero_()
        detector.box_head.dense2.bias.zero_()
    return detector


def image_processor() -> OwlViTImageProcessor:
    """The processor that matches `make_detector`: 64 px, [-1, 1]."""
    return OwlViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=list(MEAN), image_std=list(STD))


def phrasings() -> tuple[list[str], np.ndarray]:
    """All ways in which the queries are said, and the index of the concept that each one means."""
    texts, meant = [], []
    for number, entry in enumerate(entries()):
        for word in entry.words:
            for template in QUERIES:
                texts.append(template.format(word=word, a=entry.phrase(word)))
                meant.append(number)
    return texts, np.array(meant)


@dataclass(frozen=True)
class Prediction:
    """What the detector says of every cell of B pictures, for Q queries.

    Attributes:
        logits: Whether what a query names is centred here, shape (B, cells, Q).
        boxes: Centre, width and height in parts of the picture's side, shape (B, cells, 4).
        cosines: Between the cell's vector and the query's, shape (B, cells, Q).
    """

    logits: Tensor
    boxes: Tensor
    cosines: Tensor


def predict(detector: OwlViTForObjectDetection, images: Tensor, queries: Tensor) -> Prediction:
    """Ask every cell of every picture for every query.

    Args:
        detector: The detector.
        images: In [-1, 1], shape (B, 3, 64, 64).
        queries: Projected vectors of Q texts, shape (Q, D).

    Returns:
        The prediction, float32.
    """
    grid = detector.image_embedder(pixel_values=images)[0]
    cells = grid.flatten(1, 2)
    output: Any = detector.class_predictor(cells, queries.expand(len(images), *queries.shape))
    logits, vectors = output
    cosines = normalize(vectors.float(), dim=-1) @ normalize(queries.float(), dim=-1).T
    return Prediction(logits.float(), detector.box_predictor(cells, grid).float(), cosines)


def objects(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """What is where, padded to two objects.

    Returns:
        Concepts int64 (B, 2); boxes float32 (B, 2, 4) as centre, width and height in parts of the side; and which of
        them are there, bool (B, 2).
    """
    index = {entry.name: number for number, entry in enumerate(entries())}
    labels, boxes = torch.zeros(len(scenes), 2, dtype=torch.long), torch.zeros(len(scenes), 2, 4)
    present = torch.zeros(len(scenes), 2, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        for column, (label, box) in enumerate(zip(scene.labels, torch.from_numpy(scene.boxes), strict=True)):
            labels[row, column] = index[label]
            boxes[row, column] = torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]) / SIZE
            present[row, column] = True
    return labels, boxes, present


def corners(boxes: Tensor) -> Tensor:
    """Left, top, right, bottom of boxes given as centre, width and height, shape (..., 4)."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and its generalised form (Rezatofighi et al., arXiv 1902.09630).

    Args:
        first: Corners, shape (..., 4).
        second: Corners, of a shape that broadcasts with `first`'s.

    Returns:
        Both, of the broadcast shape without the last axis.
    """
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    union = areas[0] + areas[1] - shared
    least, most = torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])
    hull = (most - least).clamp(min=0).prod(-1)
    ratio = shared / union.clamp(min=1e-6)
    return ratio, ratio - (hull - union) / hull.clamp(min=1e-6)


@torch.no_grad()
def match(cost: Tensor, present: Tensor) -> Tensor:
    """The cell of each object, each cell at most once, at the least total cost; exact for two objects.

    Args:
        cost: Shape (B, cells, 2).
        present: Which objects exist, bool (B, 2).

    Returns:
        Cells, int64 (B, 2).
    """
    # For two objects one of them has its cheapest cell in a best assignment: try both orders.
    cost = cost * present[:, None]
    plans, totals = [], []
    for first in (0, 1):
        nearest = cost[:, :, first].argmin(1)
        other_cost = cost[:, :, 1 - first].scatter(1, nearest[:, None], float("inf"))
        other = other_cost.argmin(1)
        plan = torch.stack([nearest, other] if first == 0 else [other, nearest], 1)
        plans.append(plan)
        totals.append(cost.gather(1, plan[:, None]).sum((1, 2)))
    return torch.where((totals[0] <= totals[1])[:, None], plans[0], plans[1])


def detection_losses(prediction: Prediction, scenes: list[Scene]) -> dict[str, Tensor]:
    """Focal loss on all cells and queries with one cell for each object, as in OWL-ViT (arXiv 2205.06230), and more.

    One cell an object is little to learn from. So every cell whose centre lies in an object's box also learns to name
    that object among all concepts, and to give its box.

    Args:
        prediction: For B scenes, the queries being all concepts in order.
        scenes: The B scenes.

    Returns:
        ``focal``, each object counting once, and ``naming``, ``corners`` (absolute error) and ``giou``, means over
        the cells in objects.
    """
    labels, true, present = (part.to(prediction.logits.device) for part in objects(scenes))
    sure = prediction.logits.detach().gather(2, labels[:, None].expand(-1, prediction.logits.shape[1], -1)).sigmoid()
    far = (prediction.boxes.detach()[:, :, None] - true[:, None]).abs().sum(-1)
    _, near = overlap(corners(prediction.boxes.detach())[:, :, None], corners(true)[:, None])
    cells = match(-sure + 2 * far - near, present)
    rows = torch.arange(len(scenes), device=cells.device)[:, None].expand_as(cells)
    target = torch.zeros_like(prediction.logits)
    target[rows[present], cells[present], labels[present]] = 1
    chance = prediction.logits.sigmoid()
    hard = (chance * (1 - target) + (1 - chance) * target) ** 2
    balance = 0.3 * target + 0.7 * (1 - target)
    focal = (balance * hard * binary_cross_entropy_with_logits(prediction.logits, target, reduction="none")).sum()
    picture, cell, thing = inside(true, present, prediction.logits.shape[1]).nonzero(as_tuple=True)
    boxes = prediction.boxes[picture, cell]
    _, giou = overlap(corners(boxes), corners(true[picture, thing]))
    return {
        "focal": 2 * focal / present.sum(),
        "naming": cross_entropy(SHARPNESS * prediction.cosines[picture, cell], labels[picture, thing]),
        "corners": 5 * (boxes - true[picture, thing]).abs().sum(-1).mean(),
        "giou": (1 - giou).mean(),
    }


def inside(true: Tensor, present: Tensor, cells: int) -> Tensor:
    """Which cells have their centre in which object's box: bool (B, cells, 2); of two boxes the first takes a cell."""
    side = round(cells**0.5)
    middle = (torch.arange(side, device=true.device) + 0.5) / side
    places = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1).view(1, cells, 1, 2)
    edges = corners(true)[:, None]
    within = ((places > edges[..., :2]) & (places < edges[..., 2:])).all(-1) & present[:, None]
    within[..., 1] &= ~within[..., 0]
    return within


def train_detector(sitting: Sitting, training: Training) -> None:
    """Train everything but the text tower, and write ``detector_model/`` as a transformers folder.

    Args:
        sitting: Reads ``clip_model/`` and ``tokenizer/`` in its `out`.
        training: The schedule.
    """
    device = sitting.device
    tokenizer = CLIPTokenizer.from_pretrained(sitting.out / "tokenizer")
    torch.manual_seed(sitting.seed)
    detector = make_detector(CLIPModel.from_pretrained(sitting.out / "clip_model").float()).to(device)
    detector.owlvit.text_model.requires_grad_(False)
    for unused in (detector.owlvit.visual_projection, detector.owlvit.logit_scale):
        unused.requires_grad_(False)
    texts, meant = phrasings()
    with torch.no_grad():
        pooled = detector.owlvit.text_model(encode(tokenizer, texts).to(device)).pooler_output
    ways = [np.flatnonzero(meant == number) for number in range(len(entries()))]
    composer = Composer()

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((sitting.seed, 8, step))
        scenes = [composer.scene(rng, one_object=0.5) for _ in range(training.batch)]
        images = blemish(pictures(scenes), rng).to(device)
        queries = pooled[[way[rng.integers(len(way))] for way in ways]]
        with sitting.autocast():
            prediction = predict(detector, images, detector.owlvit.text_projection(queries))
        return detection_losses(prediction, scenes)

    fit("detector", sitting, training, {"detector": detector}, loss_of, weight_decay=0.05)
    folder = sitting.out / "detector_model"
    detector.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    print("detector: AP50 over all objects, and over the smaller of two:", average_precisions(detector, tokenizer))


@torch.no_grad()
def average_precisions(
    detector: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, count: int = 2000
) -> tuple[float, float]:
    """AP50 on unseen scenes, every concept being asked for in every one, each averaged over the concepts.

    Returns:
        Over all objects; and over the smaller object of each scene with two, where other objects do not count.
    """
    composer, rng = Composer(), np.random.default_rng((1_000_003, 3))
    scenes = [composer.scene(rng, one_object=0.5) for _ in range(count)]
    ids = encode(tokenizer, [entry.phrase() for entry in entries()]).to(detector.device)
    queries = detector.owlvit.text_projection(detector.owlvit.text_model(ids).pooler_output)
    parts = [
        predict(detector, pictures(scenes[start : start + 100]).to(detector.device), queries)
        for start in range(0, count, 100)
    ]
    logits, boxes = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("logits", "boxes"))
    labels, true, present = objects(scenes)
    area = true[..., 2] * true[..., 3]
    smaller = torch.zeros_like(present)
    two = present.all(1)
    smaller[two, area[two].argmin(1)] = True
    every = [precision(logits[..., k], boxes, true, present & (labels == k)) for k in range(len(entries()))]
    small = [
        precision(logits[..., k], boxes, true, smaller & (labels == k), present & ~smaller & (labels == k))
        for k in range(len(entries()))
    ]
    return tuple(float(np.nanmean(values)) for values in (every, small))  # type: ignore[return-value]


def precision(logits: Tensor, boxes: Tensor, true: Tensor, wanted: Tensor, ignored: Tensor | None = None) -> float:
    """Average precision at half overlap for one query, all points of the curve, as COCO and VOC 2010 count.

    Args:
        logits: Shape (N, cells).
        boxes: Shape (N, cells, 4), centre, width and height.
        true: Boxes of the objects, shape (N, 2, 4).
        wanted: Which objects the query means, bool (N, 2); one at most in each picture.
        ignored: Objects that the query means too but that are not asked for, bool (N, 2): their pictures are left out.

    Returns:
        In [0, 1]; not a number where nothing is wanted.
    """
    if ignored is not None:
        counted = ~ignored.any(1)
        logits, boxes, true, wanted = logits[counted], boxes[counted], true[counted], wanted[counted]
    total = int(wanted.sum())
    if not total:
        return float("nan")
    ratio, _ = overlap(corners(boxes)[:, :, None], corners(true)[:, None])
    right = ((ratio >= 0.5) & wanted[:, None]).any(-1)
    # Of the cells that are right in one picture, the surest counts and the others are wrong.
    best = torch.where(right, logits, float("-inf")).argmax(1, keepdim=True)
    first = torch.zeros_like(right).scatter(1, best, True) & right
    order = logits.flatten().argsort(descending=True)
    hits = first.flatten()[order].float()
    share = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    # The precision at a recall is the best at that recall or beyond.
    envelope = share.flip(0).cummax(0).values.flip(0)
    return float((envelope * hits).sum() / total)
