"""Gradient ascent: its path against the closed form, its budget, and what stops it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from draft.authoring.ascent import Budget, Frame, climb
from draft.errors import DraftError
from draft.progress import Silent


def ascend(score: Any, start: torch.Tensor, **options: Any) -> list[Frame]:
    given: dict[str, Any] = {"rate": 0.1, "budget": Budget(steps=4), "progress": Silent(), **options}
    return climb(score, [""] * len(start), start, lambda x: x, **given)


def linear(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    weights = torch.tensor([3.0, -4.0, 0.0]).view(1, 3, 1, 1)
    return (weights * images).sum(dim=(1, 2, 3))


def test_the_path_is_the_closed_form_whatever_the_rewards_scale() -> None:
    start = torch.full((1, 3, 2, 2), 0.5)
    direction = torch.tensor([3.0, -4.0, 0.0]) / (25 / 3) ** 0.5  # root mean square 1
    length = 0.1 * (1 + 0.75 + 0.5 + 0.25)
    wanted = start + (length * direction).view(1, 3, 1, 1)
    for scale in (1.0, 1e-25, 1e25):
        frames = ascend(lambda images, prompts, scale=scale: scale * linear(images, prompts), start)
        torch.testing.assert_close(frames[-1].images, wanted)
    frames = ascend(linear, start, less=True)
    torch.testing.assert_close(frames[-1].images, 2 * start - wanted)
    assert frames[-1].scores[0] == pytest.approx(linear(frames[-1].images, [""]).item())
    assert torch.equal(start, torch.full((1, 3, 2, 2), 0.5)), "the start stays as it is"


def test_images_of_a_batch_do_not_disturb_each_other() -> None:
    start = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def score(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return torch.tensor([1.0, 100.0, 0.0])[: len(images)] * images.square().mean(dim=(1, 2, 3))

    together = ascend(score, start, bounds=(0.0, 1.0))[-1].images
    torch.testing.assert_close(together[:1], ascend(score, start[:1], bounds=(0.0, 1.0))[-1].images)
    assert torch.equal(together[2], start[2]), "no gradient, no step"
    assert together.min() >= 0 and together.max() <= 1


def test_the_frames_show_the_whole_rise_however_many_steps_there_are() -> None:
    # The score of step k is proportional to the sum of the falling rates, 1 - (1 - k / 100)^2 of the rise.
    frames = ascend(linear, torch.full((1, 3, 2, 2), 0.5), budget=Budget(steps=100), frames=6)
    rises = [(frame.scores[0] - frames[0].scores[0]) / (frames[-1].scores[0] - frames[0].scores[0]) for frame in frames]
    assert rises == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1], abs=0.07)
    assert all(frame.scores[0] == pytest.approx(linear(frame.images, [""]).item()) for frame in frames), "copies"
    assert [frame.step for frame in ascend(linear, torch.ones(1, 3, 2, 2), frames=6)] == [0, 1, 2, 3, 4]


def test_seconds_end_it_and_one_step_is_always_made() -> None:
    def ticks(step: float) -> Any:
        times: Iterator[float] = iter(step * i for i in range(1000))
        return lambda: next(times)

    start = torch.full((1, 3, 2, 2), 0.5)
    frames = ascend(linear, start, budget=Budget(seconds=10.0), clock=ticks(1.0))
    assert frames[-1].step == 10
    assert [frame.step for frame in ascend(linear, start, budget=Budget(seconds=1.0), clock=ticks(60.0))] == [0, 1]


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (lambda i, p: i.detach().mean(dim=(1, 2, 3)), "the scores have no gradient"),
        (lambda i, p: i.mean(dim=(1, 2, 3)).log(), "the score is not finite at step 0"),
        (lambda i, p: i.mean(dim=(1, 2, 3)).sqrt(), "the gradient is not finite at step 0"),
    ],
)
def test_what_cannot_be_climbed_is_told(score: Any, told: str) -> None:
    with pytest.raises(DraftError, match=told):
        ascend(score, torch.zeros(1, 3, 2, 2))
