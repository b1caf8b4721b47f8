"""The arithmetic behind the recipe's detector, preference and head, against what is known exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from draft_emoji.recipe.aesthetic import Head
from draft_emoji.recipe.classifiers import CLASSIFIERS, UNSEEN
from draft_emoji.recipe.detector import (
    Prediction,
    corners,
    detection_losses,
    inside,
    match,
    objects,
    overlap,
    precision,
)
from draft_emoji.recipe.preference import degrade, pairs
from draft_emoji.scenes import SIZE, Composer
from draft_emoji.vocabulary import colours, concepts


def test_overlap_of_boxes_that_share_a_quarter_and_of_boxes_apart() -> None:
    box = torch.tensor([0.0, 0.0, 2.0, 2.0])
    ratio, general = overlap(box, torch.tensor([1.0, 1.0, 3.0, 3.0]))
    assert ratio.item() == pytest.approx(1 / 7)
    assert general.item() == pytest.approx(1 / 7 - 2 / 9)
    ratio, general = overlap(box, torch.tensor([3.0, 0.0, 4.0, 1.0]))
    assert ratio.item() == 0
    assert general.item() == pytest.approx(-3 / 8)


def test_matching_two_objects_to_cells_is_the_cheapest_of_all_assignments() -> None:
    cost = torch.randn(50, 5, 2, generator=torch.Generator().manual_seed(0))
    found = match(cost, torch.ones(50, 2, dtype=torch.bool))
    for table, cells in zip(cost, found.tolist(), strict=True):
        best = min(itertools.permutations(range(5), 2), key=lambda pair: float(table[pair[0], 0] + table[pair[1], 1]))
        assert tuple(cells) == best


def test_an_absent_second_object_takes_no_cell_from_the_first() -> None:
    cost = torch.tensor([[[0.0, -9.0], [1.0, 0.0]]])
    assert match(cost, torch.tensor([[True, False]]))[0, 0] == 0


def test_objects_are_the_boxes_of_the_scene() -> None:
    scene = Composer().scene(np.random.default_rng(0), ("cat", "pizza"))
    labels, boxes, there = objects([scene])
    assert [concepts()[k] for k in labels[0]] == ["cat", "pizza"]
    assert there.all()
    np.testing.assert_allclose(corners(boxes)[0].numpy() * SIZE, scene.boxes, atol=1e-4)


def test_a_perfect_prediction_costs_next_to_nothing_and_moved_boxes_cost_more() -> None:
    scenes = [Composer().scene(np.random.default_rng(k)) for k in range(4)]
    labels, true, there = objects(scenes)
    cells = inside(true, there, 64)
    logits, cosines = torch.full((4, 64, len(concepts())), -12.0), torch.full((4, 64, len(concepts())), -1.0)
    boxes = torch.rand(4, 64, 4) * 0.01
    for picture, cell, thing in cells.nonzero().tolist():
        boxes[picture, cell] = true[picture, thing]
        cosines[picture, cell, labels[picture, thing]] = 1
    for picture, thing in there.nonzero().tolist():
        first = int(cells[picture, :, thing].nonzero()[0])
        logits[picture, first, labels[picture, thing]] = 12
    assert sum(detection_losses(Prediction(logits, boxes, cosines), scenes).values()).item() < 1e-3
    moved = detection_losses(Prediction(logits, boxes + 0.1, cosines), scenes)
    assert moved["corners"].item() == pytest.approx(5 * 4 * 0.1, abs=1e-3)


def test_a_cell_lies_in_an_object_when_its_centre_does() -> None:
    true = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 1.0, 0.5]]])
    first = inside(true, torch.tensor([[True, False]]), 16)
    assert first[0, :, 0].view(4, 4).tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    assert not first[0, :, 1].any()
    both = inside(true, torch.tensor([[True, True]]), 16)
    assert not both.all(-1).any()
    assert both[0, :, 1].view(4, 4)[0].tolist() == [False, False, True, False]


def test_average_precision_of_a_known_ranking() -> None:
    # Three pictures, two with the object. In order of sureness: right, wrong, right: (1 + 2/3) / 2.
    there = torch.tensor([[True, False], [True, False], [False, False]])
    true = torch.zeros(3, 2, 4)
    true[:2, 0] = torch.tensor([0.5, 0.5, 0.4, 0.4])
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(3, 1, 1)
    assert precision(torch.tensor([[3.0], [1.0], [2.0]]), boxes, true, there) == pytest.approx((1 + 2 / 3) / 2)
    assert precision(torch.tensor([[3.0], [2.0], [1.0]]), boxes, true, there) == pytest.approx(1)
    far = boxes.clone()
    far[0] = 0.1
    assert precision(torch.tensor([[3.0], [2.0], [1.0]]), far, true, there) == pytest.approx((1 / 2) / 2)


def test_the_same_object_found_twice_counts_once() -> None:
    true = torch.zeros(1, 2, 4)
    true[0, 0] = torch.tensor([0.5, 0.5, 0.4, 0.4])
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(1, 2, 1)
    there = torch.tensor([[True, False]])
    assert precision(torch.tensor([[3.0, 2.0]]), boxes, true, there) == pytest.approx(1)


def test_degradation_grows_with_its_level_and_is_nothing_at_zero() -> None:
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    distances = []
    for level in (0.0, 0.2, 0.4, 0.7, 1.0):
        made = degrade(images, torch.full((2,), level), np.random.default_rng(0))
        assert made.abs().max() <= 1
        distances.append(float((made - images).square().mean()))
    assert distances[0] == 0
    assert distances == sorted(distances)


def test_a_caption_of_a_pair_is_true_of_the_better_picture_only() -> None:
    better, worse, captions = pairs(Composer(), np.random.default_rng(0), 6, np.zeros(6), wrong=1.0)
    assert len(captions) == 6
    assert ((better - worse).abs().amax((1, 2, 3)) > 0.1).all()


def test_the_head_has_the_published_keys_and_shapes() -> None:
    shapes = {key: tuple(value.shape) for key, value in Head(768).state_dict().items() if key.endswith("weight")}
    assert shapes == {
        "layers.0.weight": (1024, 768),
        "layers.2.weight": (128, 1024),
        "layers.4.weight": (64, 128),
        "layers.6.weight": (16, 64),
        "layers.7.weight": (1, 16),
    }


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_names_the_concepts_in_the_vocabularys_order(name: str) -> None:
    network = CLASSIFIERS[name]().eval()
    assert list((network.config.id2label or {}).values()) == concepts()
    assert network(torch.zeros(1, 3, SIZE, SIZE)).logits.shape == (1, len(concepts()))


def test_unseen_backgrounds_are_none_of_the_named_ones() -> None:
    assert not set(UNSEEN) & set(colours())
    for unseen in UNSEEN.values():
        assert min(np.abs(np.subtract(unseen, known)).max() for known in colours().values()) > 20
