"""A training on top of adapters: where it begins, what stays under it, and that its file holds what was learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.adapters.files.formats import Adapter, Factors, denoiser_factors, read_adapter, write_adapter
from draft.adapters.mixture import mix_files
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import generate_images, sample_images, seeded_noise
from draft.diffusion.lora import add_lora, load_lora, lora_factors, lora_off, use_lora
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DraftError
from draft.methods.values import AdjointMatching, DraftLV
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.scoring.objective import PenaltySettings
from draft.training.base_adapters import FRESH, AdapterFiles
from draft.training.identity import identity
from draft.training.run import prepare
from draft.training.settings import CheckpointSettings, PreviewSettings, TrainSettings
from draft.training.train import Progressed, train
from draft.types import Prompts

PROMPTS = Prompts(["a cat", "a dog"])
SETTINGS = TrainSettings(
    method=DraftLV(copies=1),
    sampler=SamplerSettings(num_inference_steps=2, guidance_scale=1.0),
    lora=LoraSettings(rank=3),
    learning_rate=1e-2,
    max_steps=2,
    batch_size=2,
    checkpoint=CheckpointSettings(every=1),
    device="cpu",
)
OTHERS = ("proj_in", "proj_out", "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2")
PLACE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"


class Bright(Reward):
    """How bright an image is."""

    name = "bright"

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


def _adapter(path: Path, *, rank: int = 2, scale: float = 1.0, seed: int = 0, names: tuple[str, ...] = ("to_q", "to_k"),
             inner: int = 16, part: str = PLACE) -> Path:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    modules = {
        f"{part}.{name}": Factors(
            torch.randn(rank, inner, generator=generator) / 3, torch.randn(16, rank, generator=generator) / 3, scale
        )
        for name in names
    }
    write_adapter(Adapter(modules, "sd", {}), path, format="diffusers")
    return path


def _products(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {name: b.double() @ a.double() for name, (a, b) in factors.items()}


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(adapters: AdapterFiles = FRESH, settings: TrainSettings = SETTINGS, *, folder: str = "out", **more) -> Path:
        train(
            settings,
            model=str(tiny_model),
            prompts=PROMPTS,
            terms=[Term("bright", Bright())],
            seed=3,
            folder=tmp_path / folder,
            adapters=adapters,
            **{"progress": Silent(), **more},
        )
        return tmp_path / folder / "adapter.safetensors"

    return run


@pytest.fixture
def prepared(tiny_model: Path):
    def prepared(adapters: AdapterFiles, settings: TrainSettings = SETTINGS):
        return prepare(settings, str(tiny_model), PROMPTS, [Term("bright", Bright())], 3, Silent(), adapters)

    return prepared


def _drawn(model, adapter: Path | None, weight: float = 1.0) -> Tensor:
    if adapter is not None:
        load_lora(model.network, denoiser_factors(read_adapter(adapter)), name="drawn")
        use_lora(model.network, "drawn", weight)
    return torch.cat(list(generate_images(model, ["a cat", "a dog"], [0, 1], SETTINGS.sampler)))


def _model(tiny_model: Path):
    return load_text_to_image(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_the_lora_begins_at_the_adapter_and_all_its_ranks_learn(prepared, tmp_path: Path, scale: float) -> None:
    path = _adapter(tmp_path / "a.safetensors", scale=scale)
    run = prepared(AdapterFiles(path))
    begun, wanted = lora_factors(run.model.network), _products(denoiser_factors(read_adapter(path)))
    for name, product in _products(begun).items():
        torch.testing.assert_close(product, wanted.get(name, torch.zeros_like(product)), rtol=2e-6, atol=2e-7)
    fresh = lora_factors(prepared(FRESH).model.network)
    learning = f"{PLACE}.to_q".removeprefix("unet.")
    assert torch.equal(begun[learning][0][2:], fresh[learning][0][2:]) and begun[learning][0][2:].any()
    assert not begun[learning][1][:, 2:].any()
    other = f"{PLACE}.to_v".removeprefix("unet.")
    assert torch.equal(begun[other][0], fresh[other][0]) and not begun[other][1].any()


def test_factors_of_scale_one_are_taken_bit_for_bit(prepared, tmp_path: Path) -> None:
    path = _adapter(tmp_path / "a.safetensors")
    begun = lora_factors(prepared(AdapterFiles(path)).model.network)
    for name, (a, b) in denoiser_factors(read_adapter(path)).items():
        assert torch.equal(begun[name][0][:2], a) and torch.equal(begun[name][1][:, :2], b)


def test_a_second_training_goes_on_from_the_file_of_the_first(run, tmp_path: Path) -> None:
    first = run(folder="first")
    second = run(AdapterFiles(first), replace(SETTINGS, learning_rate=1e-30), folder="second")
    before, after = (_products(denoiser_factors(read_adapter(path))) for path in (first, second))
    assert set(before) == set(after)
    assert any(product.any() for product in before.values())
    for name, product in before.items():
        torch.testing.assert_close(after[name], product)


def test_mixing_the_base_adapters_with_what_was_learned_draws_what_the_training_saw(
    run, tiny_model: Path, tmp_path: Path
) -> None:
    one, two = _adapter(tmp_path / "one.safetensors"), _adapter(tmp_path / "two.safetensors", rank=5, scale=0.5, seed=1)
    start = _adapter(tmp_path / "start.safetensors", names=("to_k", "to_v"), seed=2)
    seen: list[Tensor] = []

    def look(progressed: Progressed) -> bool:
        with torch.no_grad():
            model = progressed.model
            fresh = _model(tiny_model)  # its text encoder: the training has dropped its own
            size = fresh.default_size
            conditioning, unconditional = fresh.encode(["a cat", "a dog"], size), fresh.unconditional("", size)
            noise = seeded_noise([0, 1], model.latent_shape(model.default_size))
            seen.append(sample_images(model, conditioning, unconditional, noise, SETTINGS.sampler, size))
        return False

    learned = run(AdapterFiles(start, ((one, 0.7), (two, -0.4))), after=look)
    mix_files([(one, 0.7), (two, -0.4), (learned, 1.0)], tmp_path / "mix.safetensors")
    drawn = _drawn(_model(tiny_model), tmp_path / "mix.safetensors")
    torch.testing.assert_close(drawn, seen[-1], rtol=0, atol=2e-6)
    assert (drawn - _drawn(_model(tiny_model), learned)).abs().max() > 1e-3  # the base adapters are not in the file
    unet = _model(tiny_model).network
    add_lora(unet, SETTINGS.lora, seed=0)
    assert set(denoiser_factors(read_adapter(learned))) == set(lora_factors(unet))


def test_with_the_lora_off_the_base_is_the_model_with_its_base_adapters(prepared, tiny_model, tmp_path: Path) -> None:
    one = _adapter(tmp_path / "one.safetensors")
    start = _adapter(tmp_path / "start.safetensors", seed=2)
    run = prepared(AdapterFiles(start, ((one, 0.7),)))
    batch = run.next_batch()

    def output(adapted: bool) -> Tensor:
        with torch.no_grad():
            return run.output(batch, adapted=adapted)(batch.noise, 0)

    other = _model(tiny_model)
    load_lora(other.network, denoiser_factors(read_adapter(one)), name="one")
    use_lora(other.network, "one", 0.7)
    time = run.grid.times[0]
    with torch.no_grad():
        wanted = other.denoise(batch.noise, time, batch.conditioning)
    torch.testing.assert_close(output(False), wanted, rtol=0, atol=1e-6)
    assert (output(True) - wanted).abs().max() > 1e-4
    before = output(True)
    with lora_off(run.model.network), lora_off(run.model.network):
        pass
    assert torch.equal(output(True), before)
    assert [id(p) for p in run.parameters] == [id(p) for p in run.model.network.parameters() if p.requires_grad]


def test_base_adapters_get_no_gradient_and_do_not_move(run, tmp_path: Path) -> None:
    one = _adapter(tmp_path / "one.safetensors")
    kept: list[dict[str, tuple[Tensor, Tensor]]] = []

    def look(progressed: Progressed) -> bool:
        unet = progressed.model.network
        kept.append(lora_factors(unet, "beneath_0"))
        moved = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
        assert moved and all(".default." in name for name in moved)
        return False

    run(AdapterFiles(None, ((one, 0.7),)), after=look)
    for name, (a, b) in denoiser_factors(read_adapter(one)).items():
        assert torch.equal(kept[-1][name][0], a) and torch.equal(kept[-1][name][1], b)


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, penalty=PenaltySettings(epsilon=0.1)),
        replace(SETTINGS, method=AdjointMatching(), sampler=replace(SETTINGS.sampler, eta=1.0)),
    ],
    ids=["penalty", "adjoint matching"],
)
def test_methods_that_compare_with_the_base_train_on_top_of_it(run, tmp_path: Path, settings) -> None:
    adapters = AdapterFiles(None, ((_adapter(tmp_path / "one.safetensors"), 1.0),))
    with_it = _products(denoiser_factors(read_adapter(run(adapters, settings, folder="with"))))
    bare = _products(denoiser_factors(read_adapter(run(FRESH, settings, folder="without"))))
    assert any(not torch.allclose(with_it[name], bare[name]) for name in bare)
    rows = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == settings.max_steps and all(torch.isfinite(torch.tensor(row["grad_norm"])) for row in rows)


def test_an_interrupted_training_on_adapters_ends_with_the_same_bytes(run, tmp_path: Path, listener) -> None:
    one, start = _adapter(tmp_path / "one.safetensors"), _adapter(tmp_path / "start.safetensors", seed=2)
    settings = replace(SETTINGS, max_steps=3, preview=PreviewSettings(every=3, count=1))
    whole = run(AdapterFiles(start, ((one, 0.7),)), settings, folder="whole")
    with pytest.raises(KeyboardInterrupt):
        run(AdapterFiles(start, ((one, 0.7),)), settings, folder="cut", progress=listener(1))
    # Elsewhere and under other names: what counts is the content.
    (tmp_path / "moved").mkdir()
    for path in (one, start):
        path.rename(tmp_path / "moved" / f"x{path.name}")
    moved = AdapterFiles(tmp_path / "moved" / "xstart.safetensors", ((tmp_path / "moved" / "xone.safetensors", 0.7),))
    reporter = listener(100)
    cut = run(moved, settings, folder="cut", progress=reporter)
    assert "going on after update 1" in reporter.heard
    assert cut.read_bytes() == whole.read_bytes()
    pictures = [tmp_path / folder / "previews" / "step-000003.png" for folder in ("cut", "whole")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_the_identity_covers_the_files_contents_their_weights_and_their_part(tmp_path: Path) -> None:
    one, two = _adapter(tmp_path / "one.safetensors"), _adapter(tmp_path / "two.safetensors", seed=1)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(one.read_bytes())

    def name(adapters: AdapterFiles) -> str:
        return str(identity(SETTINGS, model="m", prompts=PROMPTS, terms=[], seed=0, adapters=adapters))

    different = [
        FRESH,
        AdapterFiles(one),
        AdapterFiles(two),
        AdapterFiles(None, ((one, 1.0),)),
        AdapterFiles(None, ((one, 0.5),)),
        AdapterFiles(one, ((two, 1.0),)),
        AdapterFiles(None, ((one, 1.0), (two, 1.0))),
        AdapterFiles(None, ((one, 0.0),)),
    ]
    assert len({name(each) for each in different}) == len(different)
    assert name(AdapterFiles(one, ((two, 1.0),))) == name(AdapterFiles(copy, ((two, 1.0),)))


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"rank": 5}, "init_adapter has rank 5, and the LoRA that learns lora.rank 3", "set lora.rank: 5, or cut"),
        (
            {"part": "unet.mid_block.attentions.0", "names": OTHERS},
            r"does not name: mid_block\S+proj_in, \S+proj_out, \S+ff.net.0.proj and 1 more",
            "add the ends",
        ),
        ({"part": "text_encoder.text_model.encoder.layers.0.self_attn", "names": ("q_proj",)},
         "does not touch the UNet", ""),
        ({"inner": 8}, r"does not fit mid_block\S+: the model's weight is \(16, 16\) \(got \(16, 8\)\)",
         "another model"),
    ],
    ids=["rank", "targets", "text encoder", "shape"],
)  # fmt: skip
def test_an_adapter_that_no_training_can_begin_at_is_refused(run, tmp_path: Path, options, message, hint) -> None:
    adapter = _adapter(tmp_path / "a.safetensors", **options)
    with pytest.raises(DraftError, match=message) as caught:
        run(AdapterFiles(adapter))
    assert hint in caught.value.hint


def test_base_adapters_must_fit_the_model_and_be_of_its_family(run, tmp_path: Path) -> None:
    narrow = _adapter(tmp_path / "narrow.safetensors", inner=8)
    with pytest.raises(DraftError, match="does not fit"):
        run(AdapterFiles(None, ((narrow, 1.0),)))
    part = "unet.down_blocks.1.attentions.0.transformer_blocks.5.attn1"
    larger = _adapter(tmp_path / "xl.safetensors", part=part)
    with pytest.raises(DraftError, match="is for another family of models, sdxl; this model is sd") as caught:
        run(AdapterFiles(None, ((larger, 1.0),)))
    assert caught.value.where == str(larger)
    with pytest.raises(DraftError, match="no such adapter file"):
        run(AdapterFiles(tmp_path / "nowhere.safetensors"))
