"""A training warns of rewards that ignore its prompts or read them in part, and is not changed by the look."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.errors import DraftWarning
from draft.rewards.reading import Reading, ReadingScore, cut_prompts, readings_of
from draft.rewards.reward import Reward, Term
from draft.scoring.prompt_use import other_prompts, warn_of_cut_prompts, watching_prompts
from draft.scoring.rewards import LoadedReward, load_rewards
from draft.types import Prompts

CPU = torch.device("cpu")
PROMPTS = Prompts(["a cat", "a dog", "two birds"], {"thing": ["cat", "dog", "bird"], "style": ["oil"] * 3})


class Reader(Reward):
    """The mean of an image, and perhaps the length of its prompt."""

    name = "reader"
    uses_prompt = True
    reads: str = "nothing"
    draws: bool = False

    def load(self, device: torch.device) -> Any:
        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            calls.append(list(prompts))
            if self.reads == "seeing nothing":
                return images.sum(dim=(1, 2, 3)) * 0
            values = images.mean(dim=(1, 2, 3))
            if self.draws:
                values = values + 0 * (random.random() + float(torch.rand(1)))
            if self.reads == "nothing":
                return values
            texts = prompts if self.reads == "text" else prompts.values("thing")  # type: ignore[attr-defined]
            return values * torch.tensor([sum(map(ord, text)) for text in texts])

        return score


class Silent(Reader):
    """It makes no claim."""

    uses_prompt = False


calls: list[list[str]] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    calls.clear()


def watched(reads: str, *, kind: Callable[..., Reward] = Reader, prompts: Prompts = PROMPTS) -> LoadedReward:
    (reward,) = watching_prompts(load_rewards([Term("fit", kind(reads=reads))], CPU), prompts)
    return reward


def warned(reward: LoadedReward, *batches: Prompts, seed: int = 0) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for batch in batches:
            images = torch.rand(len(batch), 3, 4, 4, generator=generator)
            before = images.clone()
            reward.scores_and_gradient(images, batch)
            assert torch.equal(images, before)
    return [str(each.message) for each in found if issubclass(each.category, DraftWarning)]


def test_scores_that_ignore_the_prompts_are_warned_of_once() -> None:
    (told,) = warned(watched("nothing"), *[PROMPTS[:2]] * 5)
    assert told == (
        "reward 'fit' uses prompts, but its scores do not depend on them: "
        "4 images have the same scores with other prompts"
    )
    assert len(calls) == 7, "two batches are scored twice"


def test_batches_of_one_image_are_compared_with_other_prompts_until_images_differ() -> None:
    (told,) = warned(watched("nothing"), *[PROMPTS[:1], PROMPTS[1:2]] * 2)
    assert "2 images have the same scores" in told
    assert calls[:4] == [["a cat"], ["a dog"], ["a dog"], ["a cat"]] and len(calls) == 6


@pytest.mark.parametrize("reads", ["text", "column"])
def test_scores_that_depend_on_prompts_or_columns_are_looked_at_once(reads: str) -> None:
    assert warned(watched(reads), *[PROMPTS[:2]] * 4) == []
    assert len(calls) == 5


def test_a_reward_that_sees_nothing_or_makes_no_claim_is_not_warned_of() -> None:
    assert warned(watched("seeing nothing"), *[PROMPTS] * 5) == [] and len(calls) == 9
    calls.clear()
    assert warned(watched("nothing", kind=Silent), *[PROMPTS] * 5) == [] and len(calls) == 5


def test_prompts_that_are_all_alike_say_nothing() -> None:
    alike = Prompts(["a cat"] * 3)
    assert warned(watched("nothing", prompts=alike), alike, alike) == [] and len(calls) == 2
    assert other_prompts(alike, PROMPTS) is None or len(alike) == 3
    constant = Prompts(["a cat", "a dog"], {"thing": ["pet", "pet"]})
    assert other_prompts(constant, constant) is None, "a reward of the column would rightly not change"


def test_the_look_draws_nothing_from_global_generators() -> None:
    def drawn(reward: LoadedReward) -> tuple[Any, ...]:
        random.seed(1)
        torch.manual_seed(1)
        warned(reward, PROMPTS, PROMPTS)
        return random.random(), torch.rand(2).tolist()

    terms = [Term("fit", Reader(draws=True))]
    (watching,) = watching_prompts(load_rewards(terms, CPU), PROMPTS)
    assert drawn(load_rewards(terms, CPU)[0]) == drawn(watching)


def words(limit: int) -> Reading:
    return Reading(limit, lambda texts: [len(text.split()) for text in texts])


def test_cut_prompts_are_counted() -> None:
    texts = ["a b c", "a", "a b c d e"]
    assert cut_prompts("fit", [words(9), words(2)], texts) == (
        "reward 'fit' reads 2 tokens of a text, and 2 of 3 prompts are longer (up to 5): the rest is cut off"
    )
    assert "1 of 3 prompts is longer (up to 5)" in cut_prompts("fit", [words(4)], texts)
    assert cut_prompts("fit", [words(5)], texts) == "" == cut_prompts("fit", [], texts)
    assert "1 of 1" in cut_prompts("fit", [words(2).of(lambda prompts: [f"a photo of {p}" for p in prompts])], ["it"])


def test_a_training_warns_of_cut_prompts_once_with_their_number() -> None:
    score = ReadingScore(lambda images, prompts: images.mean(dim=(1, 2, 3)), (words(2),))
    assert readings_of(score) == score.readings and readings_of(lambda: None) == ()
    reward = LoadedReward(Term("fit", Reader()), score, CPU, readings=score.readings)
    with pytest.warns(DraftWarning, match="1 of 3 prompts is longer") as found:
        warn_of_cut_prompts([reward], Prompts(["a cat", "a dog", "two small birds"]))
    assert len(found) == 1
