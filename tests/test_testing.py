"""The conformance kit finds each way of breaking the contract, and says so in its own words."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import draft
from draft.testing import CheckResult, check_reward, run_checks, table


class Good(draft.Reward):
    """The mean of an image."""

    name = "good"
    gain: float = draft.Field(1.0, gt=0, description="a factor")

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: self.gain * images.mean(dim=(1, 2, 3))


def _reward(score: Any) -> draft.Reward:
    class Bad(draft.Reward):
        """A reward that breaks its contract."""

        name = "bad"

        def load(self, device: torch.device) -> Any:
            return score

    return Bad()


def failing(score: Any, **attributes: Any) -> dict[str, str]:
    """Which checks a reward with that scoring function fails, and why."""
    reward = _reward(score)
    for name, value in attributes.items():
        setattr(type(reward), name, value)
    return {result.check: result.detail for result in run_checks(reward, size=(16, 16)) if not result.good}


def mean(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=(1, 2, 3))


class Doubled(torch.autograd.Function):
    """A gradient that is twice what it should be."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        return 2 * slopes[0]


def test_a_good_reward_passes_every_check() -> None:
    results = check_reward(Good(gain=2.0))
    assert {result.status for result in results} == {"passed"}
    assert "float64" in results[-1].detail


@pytest.mark.parametrize(
    ("check", "score", "told"),
    [
        ("shape", lambda i, p: i.mean(), "shape ()"),
        ("shape", lambda i, p: i.mean(dim=(2, 3)), "shape (3, 3)"),
        ("shape", lambda i, p: [0.0] * len(i), "returned list"),
        ("shape", lambda i, p: mean(i).round().int(), "scores are torch.int32"),
        ("finite", lambda i, p: mean(i).log(), "black scores"),
        ("finite", lambda i, p: mean(i).sqrt(), "gradient at black"),
        ("finite", lambda i, p: mean(i.reshape(len(i), 3, 16, 16)), "raised RuntimeError"),
        ("deterministic", lambda i, p: mean(i) + torch.rand(1, dtype=i.dtype), "then"),
        ("randomness_untouched", lambda i, p: mean(i) + 0 * torch.rand(1, dtype=i.dtype), "torch's global generator"),
        ("randomness_untouched", lambda i, p: mean(i) + 0 * random.random(), "random's global generator"),
        (
            "randomness_untouched",
            lambda i, p: mean(i) + 0 * float(torch.manual_seed(0).initial_seed()),
            "scoring seeds torch",
        ),
        ("randomness_untouched", lambda i, p: (random.seed(0), mean(i))[1], "scoring seeds random's"),
        ("randomness_untouched", lambda i, p: (np.random.seed(0), mean(i))[1], "scoring seeds numpy's"),  # noqa: NPY002
        (
            "surroundings_untouched",
            lambda i, p: (torch.set_default_dtype(torch.float64), mean(i))[1],
            "default dtype (",
        ),
        ("surroundings_untouched", lambda i, p: (os.chdir("/"), mean(i))[1], "scoring changes the current folder"),
        ("surroundings_untouched", lambda i, p: (mean(i), torch.set_grad_enabled(False))[0], "torch's grad mode"),
        ("threads", lambda i, p: (threading.Thread(target=time.sleep, args=(3,)).start(), mean(i))[1], "no daemons"),
        ("finite", lambda i, p: mean(i) * 1e30, "more than 1e+09 in size"),
        ("batch", lambda i, p: mean(i) - mean(i).mean(), "one by one"),
        ("permutation", lambda i, p: mean(i) * torch.arange(1, len(i) + 1), "reordered"),
        ("inputs_untouched", lambda i, p: mean(i.detach().mul_(0.5)), "changed in place"),
        ("inputs_untouched", lambda i, p: mean(i) + 0 * i.detach().clamp_(0, 1).sum(), "changed in place"),
        (
            "inputs_untouched",
            lambda i, p: mean(i) + 0 * i.detach().numpy().clip(0, 1, out=i.detach().numpy()).sum(),
            "place",
        ),
        ("dtypes", lambda i, p: mean(i.float() @ torch.ones(i.shape[-1], 1, dtype=i.dtype)), "raised RuntimeError"),
        ("another_device", lambda i, p: mean(i) + torch.zeros(len(i)), "cpu (3,) at tests/test_testing.py:"),
        ("another_device", lambda i, p: mean(i) * float(i.detach().float().numpy().max()), "to numpy at tests/test_t"),
        ("another_device", lambda i, p: mean(i).cpu(), "scores are on cpu, images on cuda:0"),
        ("another_device", lambda i, p: mean(i) * (2 if i.is_cuda else 1), "on the CPU, ["),
        ("another_device", lambda i, p: mean(i.detach() if i.is_cuda else i), "the gradient is lost on one of"),
        ("another_device", lambda i, p: mean(Doubled.apply(i) if i.is_cuda else i), "the gradient differs on cuda:0"),
        ("gradient", lambda i, p: mean(i.detach()), "detaches the images"),
        ("gradient", lambda i, p: mean((i * 255).round() / 255), "zero for images [0, 1, 2]"),
        ("gradient", lambda i, p: mean(Doubled.apply(i)), "differs by 50.0%"),
        ("gradient", lambda i, p: mean(Doubled.apply(i).float()).to(i.dtype), "central difference in float32"),
        ("gradient", lambda i, p: mean(i) * (torch.arange(len(i)) > 0), "zero for images [0]"),
    ],
)
def test_each_breach_is_found(check: str, score: Any, told: str) -> None:
    failed = failing(score)
    assert check in failed, table([CheckResult(name, "failed", why) for name, why in failed.items()])
    assert told in failed[check]


def test_a_score_that_is_no_number_at_black_is_reported_as_that_alone() -> None:
    failed = failing(lambda i, p: mean(i) + 0 / (mean(i) != 0))
    assert list(failed) == ["finite"] and "black scores [nan" in failed["finite"]


def test_a_failure_inside_the_reward_is_reported_once_with_its_line() -> None:
    def score(images: torch.Tensor, prompts: Any) -> Any:
        raise SystemExit(f"no {len(images)} cats")

    line = score.__code__.co_firstlineno + 1
    failed = failing(score)
    assert failed == {"shape": f"raised SystemExit: no 3 cats (tests/test_testing.py:{line})"}
    reason = {"shape": "it has no cats"}
    with pytest.raises(AssertionError, match=r"finite +failed +raised SystemExit"):
        check_reward(_reward(score), expected_failures=reason)


def test_a_reward_that_draws_while_it_is_loaded_hears_how_not_to() -> None:
    class Built(Good):
        """A reward with a network."""

        name: ClassVar[str] = "built"
        seed: bool = draft.Field(False, description="whether it seeds first")

        def load(self, device: torch.device) -> Any:
            if self.seed:
                torch.manual_seed(0)
            network = torch.nn.Linear(3, 1).requires_grad_(False)
            return lambda images, prompts: network(images.float().mean(dim=(2, 3)))[:, 0].to(images.dtype)

    found = {seed: {each.check: each.detail for each in run_checks(Built(seed=seed))} for seed in (False, True)}
    assert found[False]["randomness_untouched"] == (
        "`load` draws from torch's global generator; draft.frozen_network makes a network without"
    )
    assert found[True]["randomness_untouched"] == "`load` seeds torch's global generator"


def test_what_one_check_left_behind_reaches_no_other_one_and_not_the_caller(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    class Rude(Good):
        """A reward that changes its process while it is loaded."""

        name: ClassVar[str] = "rude"

        def load(self, device: torch.device) -> Any:
            torch.set_default_dtype(torch.float64)
            os.chdir("/")
            print("loaded")
            return lambda images, prompts: mean(images)

    failed = {each.check: each.detail for each in run_checks(Rude()) if not each.good}
    assert list(failed) == ["surroundings_untouched"]
    assert failed["surroundings_untouched"].startswith("`load` changes the current folder (/, was ")
    assert (torch.get_default_dtype(), Path.cwd()) == (torch.float32, tmp_path)


def test_parameters_that_would_learn_are_found() -> None:
    network = torch.nn.Linear(3, 1)
    failed = failing(lambda i, p: network(i.float().mean(dim=(2, 3)))[:, 0])
    assert "2 tensors of the reward require a gradient" in failed["frozen"]


def test_missing_documentation_is_found() -> None:
    class Bare(draft.Reward):
        name = "bare"
        gain: float = 1.0

        def load(self, device: torch.device) -> Any:
            return lambda images, prompts: mean(images)

    assert run_checks(Bare())[0].detail == "Bare has no docstring"
    Bare.__doc__ = "The mean."
    assert run_checks(Bare())[0].detail == "field 'gain' has no description"


def test_parameters_that_do_not_survive_json_are_found() -> None:
    class Lossy(Good):
        """A reward with a parameter that JSON cannot hold."""

        name: ClassVar[str] = "lossy"
        limit: float = draft.Field(float("inf"), description="a bound")

    results = {result.check: result for result in run_checks(Lossy())}
    assert results["round_trip"].status == "failed"


def test_a_reward_that_leaves_its_weights_on_the_cpu_is_found_with_the_line() -> None:
    class Kept(Good):
        """A reward with a table of factors."""

        name: ClassVar[str] = "kept"

        def load(self, device: torch.device) -> Any:
            factors = torch.tensor([0.5, 0.3, 0.2])
            return lambda images, prompts: images.mean(dim=(2, 3)) @ factors.to(images.dtype)

    (failed,) = (result for result in run_checks(Kept()) if not result.good)
    assert failed.check == "another_device"
    assert failed.detail.startswith(
        "mv: expected all tensors to be on the same device, but found cuda:0 (3, 3) and cpu"
    )
    assert failed.detail.endswith("return lambda images, prompts: images.mean(dim=(2, 3)) @ factors.to(images.dtype)")
    reason = {"another_device": "its table is meant to stay there"}
    assert "expected failure" in {result.status for result in check_reward(Kept(), expected_failures=reason)}


def test_a_reward_that_reads_from_the_device_passes_and_hears_where() -> None:
    class Reading(Good):
        """A reward that asks its images something."""

        name: ClassVar[str] = "reading"

        def load(self, device: torch.device) -> Any:
            return lambda images, prompts: mean(images) if bool((images.detach() > 2).any()) else 2 * mean(images)

    (result,) = (each for each in check_reward(Reading()) if each.check == "another_device")
    assert result.detail.startswith("reads by the host: 1 a batch, most at tests/test_testing.py:")


def test_what_a_pretended_device_does_not_have_is_no_failure() -> None:
    class Starting(Good):
        """A reward that wants more of a GPU than its arithmetic."""

        name: ClassVar[str] = "starting"

        def load(self, device: torch.device) -> Any:
            if device.type == "cuda":
                torch.cuda.init()
            return lambda images, prompts: mean(images)

    (result,) = (each for each in check_reward(Starting()) if each.check == "another_device")
    assert result.status == "skipped"
    assert "does not have what was asked of torch.cuda at tests/test_testing.py:" in result.detail


def test_a_metric_needs_no_gradient_and_a_batch_reward_no_single_images() -> None:
    assert failing(lambda i, p: mean((i * 255).round()), differentiable=False) == {}
    assert failing(lambda i, p: mean(i) + mean(i).mean(), per_image=False) == {}


def test_prompts_bring_the_columns_that_options_name() -> None:
    class Wordy(Good):
        """The mean of an image, times the length of a word."""

        name: ClassVar[str] = "wordy"
        word: str = draft.Field("{word}", description="a word, or a column")

        def load(self, device: torch.device) -> Any:
            def score(images: torch.Tensor, prompts: Any) -> torch.Tensor:
                lengths = [len(word) for word in draft.per_prompt(self.word, prompts)]
                return images.new_tensor(lengths) * mean(images)

            return score

    words = draft.Prompts(["a cat", "a dog", "a fox"], {"word": ["a", "bb", "ccc"]})
    assert {result.status for result in check_reward(Wordy(), prompts=words)} == {"passed"}
    with pytest.raises(AssertionError, match="the prompts have no column 'word'"):
        check_reward(Wordy())


def test_a_score_computed_in_part_in_single_precision_is_compared_with_longer_steps() -> None:
    def score(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return mean(images) + (3 + mean(images.float().square())).to(images.dtype)

    assert failing(score) == {}


def test_an_expected_failure_passes_and_an_unexpected_pass_fails() -> None:
    class Rounded(Good):
        """A reward with a dead gradient."""

        name: ClassVar[str] = "rounded"

        def load(self, device: torch.device) -> Any:
            return lambda images, prompts: mean((images * 255).round() / 255)

    results = check_reward(Rounded(), expected_failures={"gradient": "it counts levels"})
    assert results[-1].status == "expected failure"
    with pytest.raises(AssertionError, match="batch +unexpected pass +expected to fail: no reason"):
        check_reward(Good(), expected_failures={"batch": "no reason"})


def test_all_failures_are_told_at_once() -> None:
    class Bad(Good):
        """A reward with two faults."""

        name: ClassVar[str] = "bad"

        def load(self, device: torch.device) -> Any:
            return lambda images, prompts: (images.detach() + random.random()).mean(dim=(1, 2, 3))

    with pytest.raises(AssertionError, match="reward 'bad' breaks") as raised:
        check_reward(Bad())
    assert all(word in str(raised.value) for word in ("deterministic", "randomness_untouched", "gradient"))


def test_wrong_arguments_are_user_errors() -> None:
    wrong: Any = Good
    with pytest.raises(draft.DraftError, match="needs a reward with its parameters"):
        check_reward(wrong)
    with pytest.raises(draft.DraftError, match="no such check"):
        check_reward(Good(), expected_failures={"colour": "why not"})
    with pytest.raises(draft.DraftError, match="at least 2 prompts"):
        check_reward(Good(), prompts=["one"])


def test_a_reward_that_says_it_uses_prompts_must_read_them() -> None:
    def read(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return mean(images) * torch.tensor([float(sum(map(ord, text))) for text in prompts], device=images.device)

    failed = failing(lambda i, p: mean(i), uses_prompt=True)
    assert list(failed) == ["prompt_matters"] and "is their text read at all?" in failed["prompt_matters"]
    assert failing(read, uses_prompt=True) == {}
    assert failing(lambda i, p: (mean(i) > 2).float(), uses_prompt=True, differentiable=False) == {}, "it sees nothing"


def test_a_reward_that_reads_prompts_is_asked_to_say_so() -> None:
    class Reads(Good):
        """The mean of an image, longer prompts counting more."""

        def load(self, device: torch.device) -> Any:
            return lambda images, prompts: (
                mean(images) * torch.tensor([float(len(text)) for text in prompts], device=images.device)
            )

    def said(*prompts: str, columns: Any = None) -> CheckResult:
        results = run_checks(Reads(), prompts=draft.Prompts(prompts, columns), size=(16, 16))
        return next(result for result in results if result.check == "prompt_matters")

    assert said("a cat", "two birds") == CheckResult(
        "prompt_matters", "passed", "its scores depend on the prompt: say so with `uses_prompt = True`"
    )
    assert said("a cat", "a cat").detail == ""
    Reads.uses_prompt = True
    assert said("a cat", "two birds") == CheckResult("prompt_matters", "passed")
    assert said("a cat", "a cat").status == said("a cat", "a dog", columns={"thing": ["x", "x"]}).status == "skipped"
