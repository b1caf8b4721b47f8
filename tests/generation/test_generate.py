"""Pictures by a method on a tiny model: what is written, what it cost, and what a method promises of its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from draft.diffusion.control.schedules import AdapterSchedule, Annealed, LastSteps
from draft.diffusion.control.values import Guided, NoiseOpt, PromptSearch, SamplingMethod
from draft.diffusion.embedding import embed
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.generate import generate_images, make_output, seeded_draws
from draft.diffusion.sampling import sample
from draft.diffusion.schedule import make_grid
from draft.diffusion.settings import SamplerSettings
from draft.errors import StageError
from draft.evaluation.settings import GenerateSettings
from draft.evaluation.variants import Variants
from draft.generation import generate as module
from draft.generation.generate import generate
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.types import Prompts

STEPS = 3
SAMPLER = SamplerSettings(num_inference_steps=STEPS, guidance_scale=2.0)
SETTINGS = GenerateSettings(sampler=SAMPLER, images_per_prompt=2, batch_size=3, device="cpu")
PROMPTS = Prompts(["cat", "dog", "bee"], {"target": ["1", "2", "3"]})
METHODS = {
    "noise_opt": NoiseOpt(iterations=3, learning_rate=20.0, micro_batch_size=0),
    "guided": Guided(scale="rms", weight=0.2, micro_batch_size=0),
    "prompt_search": PromptSearch(modifiers=("{prompt} red", "old"), budget=4, micro_batch_size=0),
}


class Toy(Reward):
    """Scores by any function of images and prompts."""

    name = "toy"
    kind: str = "bright"

    def load(self, device: torch.device) -> Callable[[Tensor, Sequence[str]], Tensor]:
        def target(images: Tensor, prompts: Sequence[str]) -> Tensor:
            assert isinstance(prompts, Prompts)
            values = [float(value) for value in prompts.column("target")]
            return torch.tensor([float("nan") if value == 2 else value for value in values])

        shown: list[Tensor] = []

        def near(images: Tensor, prompts: Sequence[str]) -> Tensor:
            """0 at the very first image, less at any other."""
            shown.append(images.detach().clone())
            return -1000 * (images - shown[0]).square().mean(dim=(1, 2, 3))

        return {
            "bright": lambda images, prompts: images.mean(dim=(1, 2, 3)),
            "red": lambda images, prompts: images[:, 0].mean(dim=(1, 2)),
            "nan": lambda images, prompts: images.mean(dim=(1, 2, 3)) * float("nan"),
            "letters": lambda images, prompts: torch.tensor([float(len(prompt)) for prompt in prompts]),
            "target": target,
            "near": near,
        }[self.kind]


class Blind(Toy):
    """A metric without gradient."""

    name = "blind"
    differentiable = False


def term(kind: str, weight: float = 1.0) -> Term:
    return Term(kind, Toy(kind=kind), weight)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "images" / f"{name}.jsonl").read_text().splitlines()]


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> TextToImage:
    return load_text_to_image(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def quick(loaded: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded once for all tests that neither count its calls nor give it an adapter."""

    def load_variants(model: str, adapters: Any, blends: Any, texts: Any, settings: Any, progress: Any) -> Variants:
        size = loaded.default_size
        embedded = embed(loaded, texts, size, negative_prompt=settings.sampler.negative_prompt)
        return Variants(loaded, size, [{}], [embedded])

    monkeypatch.setattr(module, "load_variants", load_variants)


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(method: SamplingMethod, folder: str = "out", settings: GenerateSettings = SETTINGS, **changes: Any) -> Any:
        arguments = {"adapters": {}, "prompts": PROMPTS, "terms": [term("bright")], "seed": 7} | changes
        figures = generate(
            settings,
            method=method,
            model=str(tiny_model),
            folder=tmp_path / folder,
            progress=Silent(),
            **arguments,
        )
        return tmp_path / folder, figures

    return make


class Counter:
    """Images that pass the network, its backward pass, and the rewards, as they happen."""

    def __init__(self) -> None:
        self.calls = self.gradients = self.scored = 0

    def load(self, *arguments: Any) -> Variants:
        variants = module.load_variants.__wrapped__(*arguments)  # type: ignore[attr-defined]
        variants.model.network.register_forward_pre_hook(self._called)
        variants.model.network.conv_in.register_forward_hook(self._entered)
        return variants

    def _called(self, unet: Any, inputs: tuple[Any, ...]) -> None:
        self.calls += len(inputs[0])

    def _entered(self, layer: Any, inputs: Any, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(self._passed_back)

    def _passed_back(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)

    def reward(self) -> Term:
        counter = self

        class Counted(Reward):
            """The mean value, counted."""

            name = "counted"

            def load(self, device: torch.device) -> Callable[[Tensor, Sequence[str]], Tensor]:
                def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
                    counter.scored += len(images)
                    return images.mean(dim=(1, 2, 3))

                return score

        return Term("counted", Counted())


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter, real = Counter(), module.load_variants

    def load_variants(*arguments: Any) -> Variants:
        return counter.load(*arguments)

    load_variants.__wrapped__ = real  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "load_variants", load_variants)
    return counter


# --- without a method ---


def test_an_unknown_device_is_named(tiny_model: Path, tmp_path: Path) -> None:
    settings = GenerateSettings(sampler=SAMPLER, device="abacus")
    with pytest.raises(StageError, match="device 'abacus' is not available here"):
        generate(
            settings, model=str(tiny_model), adapters={}, prompts=PROMPTS, seed=0, folder=tmp_path, progress=Silent()
        )


def test_generate_writes_the_images_a_grid_and_what_each_one_is(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    settings = GenerateSettings(sampler=SAMPLER, images_per_prompt=2)
    figures = generate(
        settings,
        model=str(tiny_model),
        adapters={"a": (tiny_adapter, 1.0), "b": (tiny_adapter, 0.5)},
        prompts=PROMPTS,
        seed=9,
        folder=tmp_path,
        progress=Silent(),
    )
    entries = [json.loads(line) for line in (tmp_path / "images" / "images.jsonl").read_text().splitlines()]
    assert figures == {"images": 12.0} and len(entries) == 12
    assert entries[3] == {"file": "a/0003.png", "arm": "a", "prompt": "dog", "seed": 12}
    assert all((tmp_path / "images" / entry["file"]).is_file() for entry in entries)
    assert Image.open(tmp_path / "images" / "grid.png").size == (4 + 6 * 20, 4 + 2 * 20)


# --- what is written ---


@pytest.mark.parametrize("name", METHODS)
def test_every_image_has_its_line_with_scores_before_and_after_and_what_it_cost(make, quick, name: str) -> None:
    terms = [term("bright", 2.0), term("red", -0.5), term("letters", 0.0)]
    folder, figures = make(METHODS[name], terms=terms)
    images, rewards = lines(folder, "images"), lines(folder, "rewards")
    texts = ["cat", "cat", "dog", "dog", "bee", "bee"]
    assert images == [
        {"file": f"base/{i:04d}.png", "arm": "base", "prompt": text, "seed": 7 + i} for i, text in enumerate(texts)
    ]
    detail = {"noise_opt": ["iteration"], "guided": [], "prompt_search": ["modifier", "draw"]}[name]
    for i, line in enumerate(rewards):
        assert list(line) == ["file", "arm", "before", "after", "cost", *detail]
        assert (line["file"], line["arm"]) == (f"base/{i:04d}.png", "base")
        for scores in (line["before"], line["after"]):
            assert list(scores) == ["reward", "bright", "red", "letters"]
            assert scores["reward"] == pytest.approx(2 * scores["bright"] - 0.5 * scores["red"])
            assert scores["letters"] == 3
        picture = pixels(folder / "images" / line["file"])
        assert line["after"]["bright"] == pytest.approx(float(picture.mean()), abs=2e-3)
        assert line["after"]["red"] == pytest.approx(float(picture[0].mean()), abs=2e-3)
        assert line["cost"].keys() == {"network_calls", "network_gradients", "reward_evaluations", "reward_gradients"}
    assert figures.pop("images") == 6
    for key, value in figures.items():
        label, gain, _ = key.removeprefix("base.").partition(".gain")
        if label in rewards[0]["cost"]:
            own = [line["cost"][label] for line in rewards]
        else:
            own = [line["after"][label] - bool(gain) * line["before"][label] for line in rewards]
        assert value == pytest.approx(np.mean(own), abs=1e-9), key
    assert len(figures) == 2 * 4 + 4


def test_what_an_image_was_before_is_plain_sampling_from_its_seed_and_stands_above_it_in_the_grid(
    make, quick, loaded: TextToImage
) -> None:
    settings = replace(SETTINGS, images_per_prompt=1)
    folder, _ = make(METHODS["guided"], settings=settings)
    plain = torch.cat(list(generate_images(loaded, list(PROMPTS), [7, 8, 9], SAMPLER)))
    before = [line["before"]["bright"] for line in lines(folder, "rewards")]
    assert before == pytest.approx(plain.mean(dim=(1, 2, 3)).tolist(), abs=1e-5)
    sheet = pixels(folder / "images" / "grid.png")
    assert sheet.shape == (3, 4 + 2 * 20, 4 + 3 * 20)
    for i in range(3):
        upper, lower = (sheet[:, y : y + 16, 4 + 20 * i : 20 + 20 * i] for y in (4, 24))
        torch.testing.assert_close(upper, plain[i], rtol=0, atol=1 / 255)
        assert torch.equal(lower, pixels(folder / "images" / "base" / f"{i:04d}.png"))
        assert not torch.equal(upper, lower)


def test_each_adapter_is_an_arm_of_its_own_in_the_steps_of_its_schedule(make, tiny_adapter: Path) -> None:
    arms = {"off": (tiny_adapter, 0.0), "on": (tiny_adapter, 1.0), "never": (tiny_adapter, 1.0)}
    schedules = {"never": Annealed(threshold=1.0)}  # i / T stays below 1
    method = METHODS["guided"]
    folder, figures = make(method, adapters=arms, schedules=schedules)
    base, _ = make(method, "base")
    by_arm = {arm: [line for line in lines(folder, "rewards") if line["arm"] == arm] for arm in arms}
    assert [line["arm"] for line in lines(folder, "images")] == ["off"] * 6 + ["on"] * 6 + ["never"] * 6
    without = lines(base, "rewards")
    for scores in ("before", "after"):
        rewards = {arm: [line[scores]["reward"] for line in own] for arm, own in by_arm.items()}
        assert rewards["off"] == pytest.approx([line[scores]["reward"] for line in without], abs=1e-5)
        assert rewards["never"] == pytest.approx(rewards["off"], abs=1e-5)
        assert max(abs(a - b) for a, b in zip(rewards["on"], rewards["off"], strict=True)) > 1e-3
    for arm, own in by_arm.items():
        assert figures[f"{arm}.reward"] == pytest.approx(np.mean([line["after"]["reward"] for line in own]))
    assert figures["images"] == 18


def test_the_progress_line_shows_the_mean_gain_of_all_images_so_far(
    make, quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, float]] = []
    monkeypatch.setattr(Silent, "advance", lambda self, count, values: shown.append((count, values["gain"])))
    folder, figures = make(METHODS["guided"], settings=replace(SETTINGS, batch_size=2))
    gains = [line["after"]["reward"] - line["before"]["reward"] for line in lines(folder, "rewards")]
    done = np.cumsum([count for count, _ in shown])
    assert len(done) == 3 and len(set(gains)) == 6
    assert [gain for _, gain in shown] == pytest.approx([np.mean(gains[:count]) for count in done])
    assert shown[-1][1] == pytest.approx(figures["base.reward.gain"])


def test_columns_reach_a_reward_that_is_measured_and_missing_scores_are_left_out_of_the_means(make, quick) -> None:
    blind = Term("target", Toy(kind="target"), 0.0)
    _, figures = make(METHODS["guided"], terms=[term("bright"), blind], prompts=PROMPTS.take([0, 2]))
    assert (figures["base.target"], figures["base.target.gain"]) == (2.0, 0.0)


# --- cost ---

COSTS: dict[str, tuple[SamplingMethod, tuple[int, int, int, int]]] = {
    # calls and backward passes of the network, images scored, and those with a gradient
    "noise_opt": (NoiseOpt(iterations=3), (3 * 3 + 2 * 3, 2 * 3, 3, 3)),
    "noise_opt, two recorded": (NoiseOpt(iterations=3, recorded=2), (3 * 3 + 2 * 2, 2 * 2, 3, 3)),
    "noise_opt, none recorded": (NoiseOpt(iterations=3, recorded=0), (3 * 3, 0, 3, 3)),
    "noise_opt, once": (NoiseOpt(iterations=1), (3, 0, 1, 1)),
    "guided": (Guided(), (3, 3, 3, 3)),
    "guided, repeated": (Guided(recurrence=3), (9, 9, 9, 9)),
    "guided, past the network": (Guided(jacobian=False), (3, 0, 3, 3)),
    "guided, one step of three": (Guided(recurrence=2, start=0.3, stop=0.6), (2 + 2, 2, 2, 2)),
    "prompt_search": (PromptSearch(modifiers=("old",), budget=4), (4 * 3, 0, 4, 0)),
}


@pytest.mark.parametrize(("case", "scale"), [*((case, 1.0) for case in COSTS), *((case, 2.0) for case in METHODS)])
def test_the_cost_of_an_image_is_what_happened(make, counter: Counter, case: str, scale: float) -> None:
    method, (calls, gradients, scored, scored_back) = COSTS[case]
    branches = 2 if scale > 1 else 1
    settings = replace(SETTINGS, sampler=replace(SAMPLER, guidance_scale=scale), images_per_prompt=1, batch_size=2)
    folder, figures = make(method, settings=settings, terms=[counter.reward()])
    cost = {
        "network_calls": calls * branches,
        "network_gradients": gradients * branches,
        "reward_evaluations": scored,
        "reward_gradients": scored_back,
    }
    assert [line["cost"] for line in lines(folder, "rewards")] == [cost] * 3
    assert figures.items() >= cost.items()
    plain = branches * STEPS  # the comparison without the method is no part of the cost, and neither are its scores
    assert (counter.calls, counter.gradients, counter.scored) == (
        3 * (plain + calls * branches),
        3 * gradients * branches,
        3 * (2 + scored),
    )


@pytest.mark.parametrize(
    ("schedule", "calls"), [(Annealed(power=1), 3 + 2), (LastSteps(steps=2), 3)], ids=["annealed", "last_steps"]
)
def test_the_second_network_of_a_schedule_is_counted_too(
    make, counter: Counter, tiny_adapter: Path, schedule: AdapterSchedule, calls: int
) -> None:
    settings = replace(SETTINGS, sampler=replace(SAMPLER, guidance_scale=1.0))
    changes = {"adapters": {"a": (tiny_adapter, 1.0)}, "schedules": {"a": schedule}}
    _, figures = make(Guided(jacobian=False), settings=settings, **changes)
    assert figures["network_calls"] == calls
    assert counter.calls == 6 * 2 * calls


# --- an image is its own ---


@pytest.mark.parametrize("name", METHODS)
def test_an_image_depends_neither_on_the_batch_size_nor_on_its_neighbours(make, quick, name: str) -> None:
    method = METHODS[name] if name != "guided" else replace(METHODS[name], recurrence=2)
    settings = replace(SETTINGS, sampler=replace(SAMPLER, eta=0.7))
    found = [
        make(replace(method, micro_batch_size=micro), f"{size} {micro}", replace(settings, batch_size=size))[0]
        for size, micro in ((6, 0), (4, 3))
    ]
    alone, _ = make(method, "alone", settings, prompts=PROMPTS.take([2]), seed=11)  # seeds 11 and 12
    first = lines(found[0], "rewards")
    for folder, offset in ((found[1], 0), (alone, 4)):
        for line, wanted in zip(lines(folder, "rewards"), first[offset:], strict=True):
            for scores in ("before", "after"):
                assert line[scores]["bright"] == pytest.approx(wanted[scores]["bright"], abs=2e-4)
            assert all(line[key] == wanted[key] for key in ("cost", *(set(line) & {"iteration", "modifier", "draw"})))
            mine, theirs = (pixels(place / "images" / entry["file"]) for place, entry in
                            ((folder, line), (found[0], wanted)))  # fmt: skip
            torch.testing.assert_close(mine, theirs, rtol=0, atol=3 / 255)
    assert len({line["after"]["bright"] for line in first}) == 6


@pytest.mark.parametrize("name", METHODS)
def test_the_same_again_writes_the_same_bytes(make, quick, name: str) -> None:
    settings = replace(SETTINGS, sampler=replace(SAMPLER, eta=0.5), images_per_prompt=1)
    (first, one), (second, other) = (make(METHODS[name], folder, settings) for folder in ("first", "second"))
    assert one == other
    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert len(files) == 3 + 3
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    changed, _ = make(METHODS[name], "changed", settings, seed=8)
    assert (first / "images/base/0000.png").read_bytes() != (changed / "images/base/0000.png").read_bytes()


# --- what a method promises ---


def test_optimised_noise_is_never_worse_than_where_it_began_by_its_own_reward(make, quick) -> None:
    settings = replace(SETTINGS, images_per_prompt=1, batch_size=1)
    folder, _ = make(METHODS["noise_opt"], settings=settings)
    improved = lines(folder, "rewards")
    assert all(line["after"]["bright"] > line["before"]["bright"] and line["iteration"] > 0 for line in improved)
    # A reward that nothing but plain sampling has; the regulariser moves the noise away all the same.
    kept, _ = make(
        NoiseOpt(iterations=4, regulariser=1.0),
        "kept",
        settings,
        prompts=PROMPTS.take([0]),
        terms=[term("near")],
    )
    (line,) = lines(kept, "rewards")
    assert (line["before"]["reward"], line["after"]["reward"], line["iteration"]) == (0.0, 0.0, 0)


def test_guidance_raises_the_reward_the_more_the_stronger_it_is_and_lowers_it_where_the_weight_is_negative(
    make, quick
) -> None:
    def gains(weight: float, sign: float = 1.0) -> Tensor:
        folder, _ = make(
            Guided(scale="rms", weight=weight, micro_batch_size=0), f"{weight} {sign}", terms=[term("bright", sign)]
        )
        return torch.tensor([line["after"]["bright"] - line["before"]["bright"] for line in lines(folder, "rewards")])

    none, some, more, less = gains(0.0), gains(0.1), gains(0.4), gains(0.1, -1.0)
    assert torch.equal(none, torch.zeros(6))
    assert (some > 1e-3).all() and (more > some).all() and (less < -1e-3).all()


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_prompt_search_draws_every_way_from_each_noise_in_turn_and_keeps_the_best(
    make, quick, loaded: TextToImage, eta: float
) -> None:
    sampler, ways, budget = replace(SAMPLER, eta=eta), ("", "{prompt} red", "old"), 5
    settings = replace(SETTINGS, sampler=sampler, images_per_prompt=1)
    folder, _ = make(PromptSearch(modifiers=ways[1:], budget=budget), settings=settings)
    model = loaded
    size, each = model.default_size, 1 + STEPS * (eta > 0)
    grid = make_grid(model.schedule(size, sampler.num_inference_steps), sampler)
    unconditional = model.unconditional("", size)
    chosen = set()
    for entry, line in zip(lines(folder, "images"), lines(folder, "rewards"), strict=True):
        text = entry["prompt"]
        said = {"": text, "{prompt} red": f"{text} red", "old": f"{text}, old"}
        draws = seeded_draws([entry["seed"]], model.latent_shape(model.default_size), 2 * each)
        scores = {}
        for number in range(budget):
            way, again = ways[number % 3], number // 3
            output = make_output(model, grid, model.encode([said[way]], size), unconditional, sampler)
            own = draws[again * each : (again + 1) * each]
            with torch.no_grad():
                image = model.decode(sample(output, grid, own[0], list(own[1:]) or None))
            scores[way, again] = float(image.mean())
        assert len(set(scores.values())) == budget
        best = max(scores, key=scores.__getitem__)
        assert (line["modifier"], line["draw"]) == best
        assert line["after"]["bright"] == pytest.approx(scores[best], abs=1e-5)
        assert line["before"]["bright"] == pytest.approx(scores["", 0], abs=1e-5)
        chosen.add(best)
    assert len(chosen) > 1, "one way that always wins would show nothing"


def test_prompt_search_scores_each_way_by_the_prompt_as_it_is(make, quick) -> None:
    folder, _ = make(METHODS["prompt_search"], terms=[term("letters")])
    assert [(line["after"]["letters"], line["modifier"], line["draw"]) for line in lines(folder, "rewards")] == [
        (3.0, "", 0)  # of equals the first
    ] * 6


# --- what cannot be ---


@pytest.mark.parametrize("name", METHODS)
def test_a_sum_of_rewards_that_is_no_number_ends_it_with_the_prompt(make, quick, name: str) -> None:
    with pytest.raises(StageError) as caught:
        make(METHODS[name], terms=[term("nan")])
    assert str(caught.value) == (
        "the sum of rewards is not finite for the prompt 'cat' (got nan)\n"
        "  hint: a reward that has no score for some images can only be measured: weight: 0"
    )


def test_a_reward_without_gradient_can_be_searched_for_but_not_climbed(make, quick) -> None:
    blind = [Term("blind", Blind())]
    for name in ("noise_opt", "guided"):
        with pytest.raises(StageError, match=r"reward 'blind': blind has no gradient"):
            make(METHODS[name], terms=blind)
    folder, _ = make(METHODS["prompt_search"], terms=blind)
    assert all(line["after"]["blind"] >= line["before"]["blind"] - 1e-6 for line in lines(folder, "rewards"))
