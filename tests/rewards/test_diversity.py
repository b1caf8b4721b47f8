"""`diversity`: the published Vendi score, its closed forms, and gradients where images are equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import draft
from draft.rewards.reward import Term
from draft.scoring.rewards import load_rewards, score_batches
from draft.testing import check_reward
from draft_rewards._vendi import divided_differences, vendi
from draft_rewards.diversity import Diversity

GOLDEN = Path(__file__).parents[1] / "golden"
PIXELS: dict[str, Any] = {"features": "pixels"}


@pytest.fixture(scope="module")
def recorder(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(GOLDEN / "record_vendi.py")


def units(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("measure", ["vendi", "pairwise"])
@pytest.mark.parametrize("features", ["pixels", "clip"])
def test_diversity_keeps_the_contract(measure: Any, features: Any, tiny_clip: Path) -> None:
    check_reward(Diversity(measure=measure, features=features, model=str(tiny_clip)), size=(40, 56))


def test_the_pixel_score_is_that_of_the_published_package(recorder: ModuleType) -> None:
    recorded = json.loads(recorder.FILE.read_text(encoding="utf-8"))
    images = torch.stack([torch.from_numpy(picture) for picture in recorder.pictures()]).permute(0, 3, 1, 2) / 255
    score = draft.load("diversity", **PIXELS)
    for name, some in (("all", images), ("first two", images[:2]), ("last two", images[-2:])):
        # Theirs rounds the small pictures to 8 bits.
        assert score(some, [""] * len(some)).mean().item() == pytest.approx(recorded[name], rel=3e-4)
    assert 1 <= recorded["last two"] < 1.001 < 1.3 < recorded["first two"] < recorded["all"] < 6


def test_the_vendi_score_counts_what_is_different() -> None:
    basis = torch.eye(5, dtype=torch.float64)
    assert vendi(basis).mean().item() == pytest.approx(5)
    assert vendi(basis[[2, 2, 2]]).mean().item() == pytest.approx(1)
    shares = torch.tensor([3 / 6, 2 / 6, 1 / 6], dtype=torch.float64)
    uneven = vendi(basis[[0, 0, 0, 1, 1, 2]])
    assert uneven.mean().item() == pytest.approx(float(torch.special.entr(shares).sum().exp()))
    assert uneven[0] < uneven[3] < uneven[5], "what is rare scores higher"
    for cosine in (-0.6, 0.0, 0.3, 0.999):
        pair = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
        halves = torch.tensor([(1 + cosine) / 2, (1 - cosine) / 2], dtype=torch.float64)
        torch.testing.assert_close(vendi(pair), torch.special.entr(halves).sum().exp().expand(2))


def test_an_images_own_score_is_the_score_and_what_more_of_it_would_add() -> None:
    vectors = units(6, 3)

    def weighted(share: torch.Tensor) -> float:
        values = torch.linalg.eigvalsh(share.sqrt().outer(share.sqrt()) * (vectors @ vectors.T))
        return float(torch.special.entr(values.clamp(min=0)).sum().exp())

    even = torch.full((6,), 1 / 6, dtype=torch.float64)
    for index, own in enumerate(vendi(vectors)):
        more = even * (1 - 1e-6) + 1e-6 * F.one_hot(torch.tensor(index), 6)
        assert own.item() == pytest.approx(weighted(even) + (weighted(more) - weighted(even)) / 1e-6, rel=1e-4)


@pytest.mark.parametrize(
    "copies", [[0, 1, 2, 3], [0, 1, 1, 2], [0, 0, 0], [0, 1, 0, 1]], ids=["different", "a pair", "equal", "two pairs"]
)
@pytest.mark.parametrize("measure", ["vendi", "pairwise"])
def test_the_gradient_of_every_entry_is_right_where_images_are_equal_too(measure: Any, copies: list[int]) -> None:
    images = (0.2 + 0.6 * noise(4)[copies]).requires_grad_()
    score = draft.load("diversity", measure=measure, **PIXELS)
    prompts = [""] * len(copies)
    weights = torch.tensor([1.0, -0.5, 2.0, 0.7], dtype=torch.float64)[: len(copies)]
    (slope,) = torch.autograd.grad((score(images, prompts) * weights).sum(), images)
    assert slope.isfinite().all()
    step = 1e-5
    for direction in (units(len(copies), images[0].numel(), seed=1).view_as(images), slope / (slope.norm() + 1e-30)):
        with torch.no_grad():
            ahead, behind = (score(images + sign * step * direction, prompts) @ weights for sign in (1, -1))
        torch.testing.assert_close((ahead - behind) / (2 * step), (slope * direction).sum(), rtol=1e-4, atol=1e-7)


def test_divided_differences_do_not_cancel() -> None:
    values = torch.tensor([0.3, 0.3, 0.3 * (1 + 1e-13), 0.3 * (1 + 1e-6), 0.5, 1e-9, 0.0, 0.0], dtype=torch.float64)
    found = divided_differences(values)
    torch.testing.assert_close(found[:4, :4], (-values[:4].log() - 1)[:, None].expand(4, 4), rtol=1e-5, atol=0)
    f = torch.special.entr(values)
    for i, j in ((0, 4), (0, 5), (4, 5), (0, 6), (5, 6)):
        torch.testing.assert_close(found[i, j], (f[i] - f[j]) / (values[i] - values[j]), rtol=1e-7, atol=0)
    assert torch.equal(found, found.T) and torch.equal(found[6:, 6:], torch.zeros(2, 2, dtype=torch.float64))


def test_pairwise_is_the_mean_distance_to_the_others() -> None:
    images = noise(4)
    score = draft.load("diversity", measure="pairwise", **PIXELS)
    whole = score(images, [""] * 4)
    pairs = {(i, j): score(images[[i, j]], ["", ""]).mean() for i in range(4) for j in range(i)}
    torch.testing.assert_close(whole.mean(), torch.stack(list(pairs.values())).mean())
    own = torch.stack([pair for places, pair in pairs.items() if 1 in places]).mean()
    torch.testing.assert_close(whole[1], own)


def test_within_a_prompt_only_its_own_images_are_compared() -> None:
    images, prompts = noise(5), ["cat", "dog", "cat", "fox", "cat"]
    per_prompt, batch = (draft.load("diversity", within=within, **PIXELS) for within in ("prompt", "batch"))
    found = per_prompt(images, draft.Prompts(prompts))
    torch.testing.assert_close(found[[0, 2, 4]], batch(images[[0, 2, 4]], [""] * 3))
    torch.testing.assert_close(found[[1, 3]], torch.ones(2, dtype=torch.float64))


def test_nothing_to_compare_is_an_error_with_a_way_out() -> None:
    per_prompt, batch = (draft.load("diversity", within=within, **PIXELS) for within in ("prompt", "batch"))
    with pytest.raises(draft.DraftError, match="no two images of the same prompt to compare") as raised:
        per_prompt(noise(2), ["cat", "dog"])
    assert "images_per_prompt" in raised.value.hint
    with pytest.raises(draft.DraftError, match="no two images to compare") as raised:
        batch(noise(1).requires_grad_(), ["cat"])
    assert raised.value.hint == "raise batch_size"
    assert batch(noise(1), ["cat"]).item() == pytest.approx(1)


def test_an_evaluation_gives_the_same_scores_whatever_its_batch_size(tiny_clip: Path) -> None:
    images, prompts = noise(5).float(), draft.Prompts(["cat", "cat", "dog", "dog", "dog"])
    terms = [Term(name, Diversity(within=name, model=str(tiny_clip))) for name in ("batch", "prompt")]
    found = []
    for size in (1, 2, 5):
        batches = [(prompts[start : start + size], images[start : start + size]) for start in range(0, 5, size)]
        found.append(score_batches(load_rewards(terms, torch.device("cpu")), batches, prompts))
    assert found[0] == found[1] == found[2]
    assert len(found[0]["batch"]) == 5 and found[0]["batch"] != found[0]["prompt"]
