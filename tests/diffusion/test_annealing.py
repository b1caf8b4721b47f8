"""Schedules of an adapter against the two models that they mix, to the last bit where that is claimed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.control.annealing import scheduled, share
from draft.diffusion.control.schedules import AdapterSchedule, Annealed, Combined, Constant, LastSteps, schedule_words
from draft.diffusion.families import TextToImage
from draft.diffusion.generate import make_output
from draft.diffusion.lora import add_lora, lora_off, lora_parameters
from draft.diffusion.sampling import predict, sample
from draft.diffusion.schedule import FlowSchedule, make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings

STEPS = 4
SAMPLER = SamplerSettings(num_inference_steps=STEPS, guidance_scale=3.0)


class Scene:
    """A tiny model with an adapter that changes what it draws, and a count of the network's calls by their rows."""

    def __init__(self, model: TextToImage) -> None:
        generator = torch.Generator().manual_seed(0)
        add_lora(model.network, LoraSettings(rank=2), seed=1)
        with torch.no_grad():
            for parameter in lora_parameters(model.network)[1::2]:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.model, self.rows = model, list[int]()
        self.grid = make_grid(model.schedule(model.default_size, SAMPLER.num_inference_steps), SAMPLER)
        self.noise = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
        self.conditioning = model.encode(["a cat", "a dog"], model.default_size)
        self.unconditional = model.unconditional("", model.default_size)

    def draw(self, schedule: AdapterSchedule, *, guidance: float = 3.0, base: bool = False) -> Tensor:
        def net(x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
            self.rows.append(len(x))
            return self.model.denoise(x, time, conditioning)

        sampler = SamplerSettings(num_inference_steps=STEPS, guidance_scale=guidance)
        output = make_output(self.model, self.grid, self.conditioning, self.unconditional, sampler, schedule, net=net)
        self.rows.clear()
        with torch.no_grad():
            if base:
                with lora_off(self.model.network):
                    return sample(output, self.grid, self.noise)
            return sample(output, self.grid, self.noise)


@pytest.fixture
def scene(load) -> Scene:
    return Scene(load())


def same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right)


def test_annealing_with_power_0_is_the_tuned_model_and_with_power_1_neither(scene: Scene) -> None:
    tuned, base = scene.draw(Constant()), scene.draw(Constant(), base=True)
    assert not same(tuned, base)
    assert same(scene.draw(Annealed(power=0)), tuned)
    mixed = scene.draw(Annealed(power=1))
    assert not same(mixed, tuned) and not same(mixed, base)


def test_the_first_annealed_step_is_exactly_the_base_models(scene: Scene) -> None:
    arguments = (scene.model, scene.grid, scene.conditioning, scene.unconditional, SAMPLER)
    with torch.no_grad():
        first = make_output(*arguments, Annealed(power=2))(scene.noise, 0)
        with lora_off(scene.model.network):
            assert same(first, make_output(*arguments)(scene.noise, 0))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 4.0])
def test_annealing_a_model_with_itself_is_the_model_to_the_last_bit(scene: Scene, power: float) -> None:
    # The adapter is off for both.
    assert same(scene.draw(Annealed(power=power), base=True), scene.draw(Constant(), base=True))


def test_mixing_outputs_is_mixing_predicted_noise_for_v_and_flow_too(load) -> None:
    generator = torch.Generator().manual_seed(1)
    x, tuned, base = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    i, w = 2, share(Annealed(power=1), 2, STEPS)
    mixed = scheduled(Annealed(power=1), STEPS, tuned=lambda x, i: tuned, base=lambda x, i: base)(x, i)
    for schedule in (load("v_prediction").noise, FlowSchedule(shift=3.0)):
        grid = make_grid(schedule, SAMPLER)
        parts = [predict(grid, x, out, i)[1] for out in (base, tuned)]
        torch.testing.assert_close(predict(grid, x, mixed, i)[1], (1 - w) * parts[0] + w * parts[1])


def test_shares_are_those_of_the_formulas() -> None:
    def shares(schedule: AdapterSchedule) -> list[float]:
        return [share(schedule, i, 5) for i in range(5)]

    assert shares(Constant()) == [1] * 5
    assert shares(Annealed(power=0)) == [1] * 5
    assert shares(Annealed(power=2)) == pytest.approx([0, 0.04, 0.16, 0.36, 0.64])
    assert shares(Annealed(threshold=0.6)) == [0, 0, 0, 1, 1] == shares(LastSteps(steps=2))
    assert shares(Combined(base_steps=2)) == [0, 0, 1, 1, 1]


def test_the_last_t_steps_are_all_and_the_last_one_is_one(scene: Scene) -> None:
    assert same(scene.draw(LastSteps(steps=STEPS)), scene.draw(Constant()))
    late = scene.draw(LastSteps(steps=1))
    assert not same(late, scene.draw(Constant())) and not same(late, scene.draw(Constant(), base=True))


def test_combined_generation_has_the_tuned_and_the_base_model_as_its_ends(scene: Scene) -> None:
    assert same(scene.draw(Combined(base_steps=0, guidance_scale=3.0)), scene.draw(Constant()))
    assert same(scene.draw(Combined(base_steps=0)), scene.draw(Constant(), guidance=1.0))
    assert same(scene.draw(Combined(base_steps=STEPS)), scene.draw(Constant(), base=True))


def test_the_part_without_guidance_never_calls_the_unconditional_branch(scene: Scene) -> None:
    scene.draw(Combined(base_steps=1))
    assert scene.rows == [4, 2, 2, 2]


def test_an_annealed_step_costs_two_calls_but_the_first(scene: Scene) -> None:
    scene.draw(Annealed(power=1))
    assert scene.rows == [4] * (2 * STEPS - 1)


def test_a_schedule_is_told_in_words() -> None:
    assert schedule_words(None) == schedule_words(Constant()) == ""
    assert schedule_words(Annealed(power=2)) == "annealed, power 2"
    assert schedule_words(Combined(base_steps=5)) == "combined, base steps 5, guidance scale 1"
