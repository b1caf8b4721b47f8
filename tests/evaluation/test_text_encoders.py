"""Adapters with parts for text encoders: drawn as diffusers draws them, and left off by trainings, which report it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter
from draft.diffusion.embedding import embed
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import seeded_noise
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import StageError
from draft.evaluation.settings import GenerateSettings
from draft.evaluation.variants import draw, load_variants, seed_prompts
from draft.generation.generate import generate
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.training.base_adapters import AdapterFiles
from draft.training.settings import CheckpointSettings, TrainSettings
from draft.training.train import train
from draft.types import Prompts

CPU = torch.device("cpu")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""All that kohya's tools train; diffusers drops the attention of files that lack its `out_proj`."""
PROMPTS = Prompts(["a cat", "two dogs"])
SAMPLER = SamplerSettings(num_inference_steps=4, guidance_scale=3.0, negative_prompt="bad")
SETTINGS = GenerateSettings(sampler=SAMPLER, batch_size=2, device="cpu")


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Bright(Reward):
    """How bright an image is."""

    name = "bright"

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


def _adapter(model: Path, path: Path, *parts: str, seed: int = 1) -> Path:
    """A file in kohya's names with random factors, alpha half the rank in the text encoder."""
    loaded = load_text_to_image(str(model), device=CPU, dtype=torch.float32)
    networks = {"unet": loaded.network, **loaded.encoders}
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for part in parts:
        prefix = "text_encoder.text_model." if part == "text_encoder" else "unet."
        for name, module in networks[part].named_modules():
            if name.endswith(("to_q", "to_v", *TEXT)):
                down = torch.randn(2, module.in_features, generator=generator)
                up = torch.randn(module.out_features, 2, generator=generator)
                modules[prefix + name.removeprefix("text_model.")] = Factors(down, up, 0.5)
    write_adapter(Adapter(modules), path, format="kohya")
    return path


@pytest.fixture(scope="module")
def both(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _adapter(tiny_model, tmp_path_factory.mktemp("both") / "both.safetensors", "unet", "text_encoder")


@pytest.fixture(scope="module")
def text(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _adapter(tiny_model, tmp_path_factory.mktemp("text") / "text.safetensors", "text_encoder", seed=2)


def _theirs(model: Path, adapter: Path, weight: float) -> torch.Tensor:
    pipeline = StableDiffusionPipeline.from_pretrained(str(model), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name, adapter_name="one")
    pipeline.set_adapters(["one"], [weight])
    arguments = {"num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": ["bad"] * 2}
    with torch.no_grad():
        return pipeline(list(PROMPTS), latents=seeded_noise([7, 8], (4, 8, 8)), output_type="pt", **arguments).images


def _ours(model: Path, adapters: dict[str, Path], blend: dict[str, float]) -> torch.Tensor:
    variants = load_variants(str(model), adapters, [blend], list(PROMPTS), SETTINGS, Silent())
    seeded = seed_prompts(PROMPTS, images_per_prompt=1, seed=7)
    return torch.cat([images for _, images in draw(variants, 0, seeded, SETTINGS)])


@pytest.mark.parametrize("weight", [1.0, 0.6, -0.5])
def test_images_with_a_text_encoders_adapter_equal_those_of_diffusers(tiny_model: Path, both: Path, weight) -> None:
    assert {name.partition(".")[0] for name in read_adapter(both).modules} == {"unet", "text_encoder"}
    base, ours = _ours(tiny_model, {}, {}), _ours(tiny_model, {"both": both}, {"both": weight})
    assert float((ours - base).abs().max()) > 0.01
    torch.testing.assert_close(ours, _theirs(tiny_model, both, weight), rtol=0.0, atol=1e-4)


def test_an_adapter_of_the_text_encoder_alone_is_drawn_too(tiny_model: Path, text: Path) -> None:
    ours = _ours(tiny_model, {"text": text}, {"text": 1.0})
    assert float((ours - _ours(tiny_model, {}, {})).abs().max()) > 0.01
    torch.testing.assert_close(ours, _theirs(tiny_model, text, 1.0), rtol=0.0, atol=1e-4)


def test_every_variant_has_its_own_embeddings_and_those_without_text_parts_share_one(
    tiny_model: Path, both: Path, text: Path, tmp_path: Path
) -> None:
    plain = _adapter(tiny_model, tmp_path / "plain.safetensors", "unet", seed=3)
    adapters = {"both": both, "text": text, "plain.1": plain}
    blends = [{}, {"plain.1": 1.0}, {"both": 1.0}, {"both": 0.5}, {"both": 1.0, "text": 1.0}, {"both": 0.0}, {}]
    variants = load_variants(str(tiny_model), adapters, blends, list(PROMPTS), SETTINGS, Silent())
    first, shared, one, half, two, off, again = variants.embedded
    assert first is shared is off is again
    model = load_text_to_image(str(tiny_model), device=CPU, dtype=torch.float32)
    wanted = embed(model, list(PROMPTS), model.default_size, negative_prompt="bad")
    values = [each.conditioning.tensors["text"] for each in (wanted, one, half, two)]
    assert torch.equal(first.conditioning.tensors["text"], values[0])
    assert all(not torch.equal(a, b) for k, a in enumerate(values) for b in values[:k])
    assert not torch.equal(one.unconditional.tensors["text"], wanted.unconditional.tensors["text"])


def test_generate_draws_the_text_parts_and_reports_nothing_left_off(tiny_model: Path, both: Path, tmp_path) -> None:
    said = Said()
    generate(
        SETTINGS, model=str(tiny_model), adapters={"both": (both, 0.6)}, prompts=PROMPTS, seed=7, folder=tmp_path,
        progress=said,
    )  # fmt: skip
    pictures = [np.asarray(Image.open(tmp_path / "images" / "both" / f"000{k}.png")) for k in range(2)]
    wanted = _ours(tiny_model, {"both": both}, {"both": 0.6}).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack(pictures), np.rint(wanted * 255).astype(np.uint8))
    assert said.lines == []


def test_parts_that_the_model_does_not_have_are_reported(tiny_model: Path, both: Path, tmp_path: Path) -> None:
    modules = dict(read_adapter(both).modules)
    foreign = {name.replace("text_encoder.", "text_encoder_3."): f for name, f in modules.items() if "text_enc" in name}
    path, said = tmp_path / "foreign.safetensors", Said()
    write_adapter(Adapter({**modules, **foreign}), path, format="kohya")
    load_variants(str(tiny_model), {"a": path}, [{"a": 1.0}], list(PROMPTS), SETTINGS, said)
    assert said.lines == [
        f"adapter 'a': its {len(foreign)} modules of text_encoder_3 are not applied: the model has none"
    ]


def test_an_adapter_of_another_family_is_refused_by_both_names(tiny_model: Path, tmp_path: Path) -> None:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.5.attn1.to_q"
    write_adapter(Adapter({name: Factors(torch.ones(1, 16), torch.ones(16, 1))}, "sdxl"), tmp_path / "xl.safetensors")
    with pytest.raises(StageError, match="is for another family of models, sdxl; this model is sd") as caught:
        load_variants(str(tiny_model), {"a": tmp_path / "xl.safetensors"}, [{}], ["a"], SETTINGS, Silent())
    assert caught.value.where == "a"


def test_a_training_leaves_text_parts_off_and_reports_it(tiny_model: Path, both: Path, tmp_path: Path) -> None:
    settings = TrainSettings(
        sampler=SamplerSettings(num_inference_steps=2),
        lora=LoraSettings(rank=2, targets=("to_q", "to_v")),
        max_steps=1,
        batch_size=1,
        checkpoint=CheckpointSettings(every=0),
        device="cpu",
    )
    said, count = Said(), sum(name.startswith("text_encoder.") for name in read_adapter(both).modules)
    train(
        settings, model=str(tiny_model), prompts=PROMPTS, terms=[Term("bright", Bright())], seed=0, folder=tmp_path,
        progress=said, adapters=AdapterFiles(both),
    )  # fmt: skip
    assert f"adapter {both}: its {count} text-encoder modules are not applied, only the UNet's are" in said.lines
    assert all(name.startswith("unet.") for name in read_adapter(tmp_path / "adapter.safetensors").modules)
