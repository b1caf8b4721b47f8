"""A network whose checkpoint does not say what it predicts is asked: it answers noise or velocity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import load_text_to_image
from draft.diffusion.families.single_file import settle_prediction
from draft.diffusion.schedule import Schedule
from draft.types import Size

CPU = torch.device("cpu")

BLANK = Conditioning({"text": torch.zeros(1, 1, 1)})


class Guess:
    """The best guess of e or v for normal latents of variance q^2."""

    def __init__(self, prediction: str, variance: float) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.noise = Schedule(tuple((1 - betas).cumprod(0).tolist()))
        signal = self.noise.alphas_cumprod[-1]
        alpha, sigma = signal**0.5, (1 - signal) ** 0.5
        self.factor = sigma if prediction == "epsilon" else alpha * sigma * (1 - variance)
        self.factor /= signal * variance + 1 - signal
        self.device, self.default_size = CPU, Size(64, 64)

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        return 4, 8, 8

    def denoise(self, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        assert int(time) == 999
        return self.factor * latents


@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_network_itself_says_what_it_predicts(prediction: str, variance: float) -> None:
    model: Any = Guess(prediction, variance)
    assert settle_prediction(model, model.noise, BLANK).prediction == prediction


def test_a_trained_network_says_what_it_predicts() -> None:
    from draft.rewards.extensions import model_path

    model: Any = load_text_to_image(model_path("emoji"), device=CPU, dtype=torch.float32)
    assert model.noise.prediction == "v_prediction"
    blank = model.unconditional("", model.default_size)
    assert settle_prediction(model, model.noise, blank).prediction == "v_prediction"
    signal = model.noise.alphas_cumprod[-1]
    predict_v = model.denoise

    def predict_noise(latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        return signal**0.5 * predict_v(latents, time, conditioning) + (1 - signal) ** 0.5 * latents

    model.denoise = predict_noise
    assert settle_prediction(model, model.noise, blank).prediction == "epsilon"
