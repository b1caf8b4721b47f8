"""Stable Diffusion XL: diffusers' images, exact gradients, adapters that load elsewhere, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.formats import read_adapter, write_adapter
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import sample_images
from draft.diffusion.guidance import guide
from draft.diffusion.lora import add_lora, lora_factors, lora_parameters
from draft.diffusion.schedule import Schedule, make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.diffusion.surrogate import Denoisers, sample_with_plan
from draft.methods.modules import draw_plan
from draft.methods.values import DraftK, DraftLV, Method
from draft.types import Size

CPU = torch.device("cpu")
PROMPTS = ["a cat", "two dogs", ""]
SQUARE, WIDE = Size(16, 16), Size(16, 24)


def load(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_text_to_image(str(model), device=CPU, dtype=dtype)


def noise_for(model: Any, size: Size, count: int = len(PROMPTS)) -> Tensor:
    return torch.randn(count, *model.latent_shape(size), generator=torch.Generator().manual_seed(3))


def ours(model: Any, sampler: SamplerSettings, size: Size = SQUARE) -> Tensor:
    texts, unconditional = model.encode(PROMPTS, size), model.unconditional(sampler.negative_prompt, size)
    return sample_images(model, texts, unconditional, noise_for(model, size), sampler, size)


def pipeline_of(model: Path, **scheduler: Any) -> Any:
    """diffusers' pipeline, with its shipped scheduler or, where options are given, with DDIM's."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler:
        options = {"clip_sample": False, "set_alpha_to_one": False, **scheduler}
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **options)
    return pipeline


def theirs(pipeline: Any, model: Any, sampler: SamplerSettings, size: Size = SQUARE) -> Tensor:
    negative = [sampler.negative_prompt] * len(PROMPTS) if sampler.negative_prompt else None
    return pipeline(
        PROMPTS,
        negative_prompt=negative,
        height=size.height,
        width=size.width,
        num_inference_steps=sampler.num_inference_steps,
        guidance_scale=sampler.guidance_scale,
        latents=noise_for(model, size),
        output_type="pt",
    ).images


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0.0, atol=1e-4)


def agrees(
    model: Path, kind: str, spacing: str, steps: Sequence[int], guidance: float, negative: str, size: Size
) -> None:
    loaded = load(model)
    # Euler's scheduler begins with noise of its largest sigma, which its own scaling of the network's input undoes.
    pipeline = pipeline_of(model, **({} if kind == "euler" else {"timestep_spacing": spacing}))
    final: Any = "one" if kind == "euler" else "first_alpha"
    for count in steps:
        sampler = SamplerSettings(
            num_inference_steps=count, guidance_scale=guidance, negative_prompt=negative, spacing=spacing, final=final
        )
        same(ours(loaded, sampler, size), theirs(pipeline, loaded, sampler, size))


@pytest.mark.parametrize("kind", ["ddim", "euler"])
@pytest.mark.parametrize(
    ("steps", "guidance", "negative", "size"),
    [((1, 3), 7.0, "blurred", WIDE), ((7,), 1.0, "", SQUARE), ((20,), 7.0, "", SQUARE)],
    ids=str,
)
def test_images_are_diffusers(
    xl_folder: Path, kind: str, steps: tuple[int, ...], guidance: float, negative: str, size: Size
) -> None:
    agrees(xl_folder, kind, "leading", steps, guidance, negative, size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddim", "euler"])
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (7.0, ""), (7.0, "blurred")])
@pytest.mark.parametrize("size", [SQUARE, WIDE], ids=str)
def test_images_are_diffusers_at_every_number_of_steps(
    xl_folder: Path, kind: str, guidance: float, negative: str, size: Size
) -> None:
    agrees(xl_folder, kind, "leading", range(1, 21), guidance, negative, size)


def test_images_are_diffusers_where_the_steps_do_not_divide_the_schedule(xl_folder: Path) -> None:
    agrees(xl_folder, "ddim", "trailing", (7, 15), 7.0, "", SQUARE)


def test_a_v_model_without_terminal_signal_draws_diffusers_images_and_encodes_an_empty_negative_prompt(
    xl_zero_snr: Path,
) -> None:
    model = load(xl_zero_snr)
    schedule = model.schedule(SQUARE, 5)
    assert isinstance(schedule, Schedule) and schedule.prediction == "v_prediction"
    assert schedule.alphas_cumprod[-1] == 0.0
    sampler = SamplerSettings(num_inference_steps=5, guidance_scale=7.0)
    pipeline = pipeline_of(xl_zero_snr, set_alpha_to_one=True)
    same(ours(model, sampler), theirs(pipeline, model, sampler))
    empty, embedded = model.unconditional("", SQUARE), model.encode([""], SQUARE)
    assert all(torch.equal(empty.tensors[name], embedded.tensors[name]) for name in ("text", "pooled", "time_ids"))


def test_every_part_of_the_conditioning_reaches_the_images(xl_folder: Path) -> None:
    """Otherwise equal images would prove nothing of it."""
    model, sampler = load(xl_folder), SamplerSettings(num_inference_steps=2, guidance_scale=7.0)
    noise = noise_for(model, WIDE)
    texts, unconditional = model.encode(PROMPTS, WIDE), model.unconditional("", WIDE)

    def drawn(texts: Any, unconditional: Any) -> Tensor:
        return sample_images(model, texts, unconditional, noise, sampler, WIDE)

    base = drawn(texts, unconditional)
    turned = model.encode(PROMPTS, Size(24, 16)).tensors["time_ids"]
    for name, tensor in (
        ("text", texts.tensors["text"].flip(0)),
        ("pooled", texts.tensors["pooled"].flip(0)),
        ("time_ids", turned),
    ):
        assert (drawn(texts.with_tensor(name, tensor), unconditional) - base).abs().max() > 1e-3, name
    assert (drawn(texts, model.encode([""], WIDE)) - base).abs().max() > 1e-3


def test_an_embedding_has_the_same_bits_whatever_is_embedded_with_it(xl_folder: Path) -> None:
    model = load(xl_folder)
    together, alone = model.encode(PROMPTS, SQUARE), model.encode(PROMPTS[1:2], SQUARE)
    assert all(torch.equal(together.tensors[name][1:2], tensor) for name, tensor in alone.tensors.items())
    assert together.tensors["text"].shape == (3, 16, 32) and together.tensors["pooled"].shape == (3, 20)
    assert together.tensors["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 3


def test_weights_are_read_when_they_are_needed_in_the_precision_that_is_used(xl_folder: Path) -> None:
    model, reads = load(xl_folder, torch.float16), []
    read = model.components._read
    model.components._read = lambda part, dtype: reads.append((part, dtype)) or read(part, dtype)
    assert model.latent_shape(WIDE) == (4, 8, 12) and model.default_size == SQUARE
    assert not model.unconditional("", SQUARE).tensors["text"].any() and reads == []
    model.encode(["a"], SQUARE)
    half = torch.float16
    assert reads == [("text_encoder", half), ("text_encoder_2", half)]
    model.drop_encoders()
    assert model.encoders == {}
    with pytest.raises(RuntimeError, match="dropped"):
        model.encode(["a"], SQUARE)
    assert {p.dtype for p in model.network.parameters()} == {half}
    assert not any(p.requires_grad for p in model.network.parameters())
    # The autoencoder's activations overflow in half precision.
    assert model.components["vae"].dtype == torch.float32
    assert reads[2:] == [("unet", half), ("vae", torch.float32)]
    images = model.decode(torch.randn(1, 4, 8, 8))
    assert images.dtype == torch.float32 and images.isfinite().all()


def test_an_autoencoder_that_bears_half_precision_keeps_it(xl_module: ModuleType, tmp_path: Path) -> None:
    model = xl_module.save_tiny_xl(tmp_path / "model", vae={"force_upcast": False})
    assert load(model, torch.float16).components["vae"].dtype == torch.float16
    assert load(model, torch.bfloat16).components["vae"].dtype == torch.bfloat16


def test_latents_are_shifted_and_scaled_where_the_autoencoder_has_means(xl_module: ModuleType, tmp_path: Path) -> None:
    vae = {"latents_mean": [-1.6, 1.9, -1.4, 2.5], "latents_std": [8.4, 5.3, 5.2, 5.4], "scaling_factor": 0.5}
    path = xl_module.save_tiny_xl(tmp_path / "model", vae=vae)
    model, sampler = load(path), SamplerSettings(num_inference_steps=2, spacing="leading", final="first_alpha")
    same(ours(model, sampler), theirs(pipeline_of(path, timestep_spacing="leading"), model, sampler))


class Problem:
    """A rollout, the decoder and a smooth reward as one function of the LoRA weights."""

    def __init__(self, folder: Path, method: Method, dtype: torch.dtype = torch.float64, steps: int = 4) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = load(folder, dtype)
        texts, unconditional = self.model.encode(PROMPTS[:2], WIDE), self.model.unconditional("", WIDE)
        add_lora(self.model.network, LoraSettings(rank=2), seed=1)
        self.parameters = lora_parameters(self.model.network)
        latent = torch.float64 if dtype == torch.float64 else torch.float32
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(latent)  # noqa: E731
        with torch.no_grad():
            for parameter in self.parameters[1::2]:  # B: at B = 0 the gradient of A vanishes
                parameter.copy_(0.3 * draw(*parameter.shape))
        self.grid = make_grid(self.model.schedule(WIDE, steps), SamplerSettings(num_inference_steps=steps))
        self.plan = draw_plan(method, steps, torch.Generator().manual_seed(1))
        shape = self.model.latent_shape(WIDE)
        self.noise, self.copy_noise = draw(2, *shape), draw(2 * self.plan.copies, *shape)
        self.output = guide(self.model.denoise, self.grid, texts, unconditional, 3.0)
        self.pattern = draw(3, WIDE.height, WIDE.width)

    def reward(self, latents: Tensor) -> Tensor:
        images = self.model.decode(latents)
        return (images * self.pattern).sum(dim=(1, 2, 3)) + images.square().mean(dim=(1, 2, 3)).sin()

    def latents(self) -> Tensor:
        networks = Denoisers(no_grad=self.output, with_grad=self.output)
        return sample_with_plan(networks, self.grid, self.plan, self.noise, copy_noise=self.copy_noise)

    def gradient(self) -> list[Tensor]:
        return list(torch.autograd.grad(self.reward(self.latents()).mean(), self.parameters))


@pytest.mark.parametrize("method", [DraftK(k=2), DraftLV(copies=2)], ids=str)
def test_the_gradient_agrees_with_central_differences(xl_folder: Path, toys: Any, method: Method) -> None:
    problem = Problem(xl_folder, method)
    gradient, generator = problem.gradient(), torch.Generator().manual_seed(5)
    held = toys.held(problem.plan, problem.grid, problem.output, problem.noise, problem.copy_noise)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in problem.parameters]
    exact = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
    slope = toys.slope_of(lambda: problem.reward(held()).mean(), problem.parameters, direction)
    assert slope == pytest.approx(exact, rel=1e-6)
    assert abs(exact) > 1e-6


def test_a_training_in_bfloat16_follows_the_gradient_of_float32(xl_folder: Path) -> None:
    exact, rough = (
        torch.cat([g.flatten() for g in Problem(xl_folder, DraftK(k=1), dtype).gradient()])
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == torch.float32
    assert float(torch.cosine_similarity(exact, rough, dim=0)) >= 0.99


def kept_bytes(model: Any, latents: Tensor) -> tuple[int, Tensor]:
    """What a decoding keeps for backward, each memory once, and its gradient."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other gets its address
        return tensor

    def begins(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    # What is recomputed begins with its input, which checkpointing holds outside of autograd's saved tensors.
    up = model.components["vae"].decoder.up_blocks
    layers = [layer for block in up for layer in (*block.resnets, *(block.upsamplers or ()))]
    hooks = [layer.register_forward_pre_hook(begins) for layer in (model.components["vae"].decoder.mid_block, *layers)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        images = model.decode(latents)
    for hook in hooks:
        hook.remove()
    size = sum(storage.nbytes() for storage in storages.values())
    return size, torch.autograd.grad(images.square().sum(), latents)[0]


def test_recomputing_blocks_changes_no_gradient_and_keeps_less(xl_folder: Path) -> None:
    problem = Problem(xl_folder, DraftK(k=1))
    plain = problem.gradient()
    problem.model.checkpoint_blocks(True)
    recomputed = problem.gradient()
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    latents = torch.randn(1, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    found = {}
    for on in (False, True):
        problem.model.checkpoint_blocks(on)
        found[on] = kept_bytes(problem.model, latents)
    assert torch.equal(found[True][1], found[False][1])
    assert found[True][0] < 0.5 * found[False][0]


def test_blocks_of_a_network_that_is_read_later_are_recomputed_too(xl_folder: Path) -> None:
    model = load(xl_folder)
    model.checkpoint_blocks(True)
    assert model.network.is_gradient_checkpointing and model.components["vae"].is_gradient_checkpointing
    model.checkpoint_blocks(False)
    assert not model.network.is_gradient_checkpointing and not model.components["vae"].is_gradient_checkpointing


def test_a_saved_adapter_draws_our_images_in_diffusers(xl_folder: Path, tmp_path: Path) -> None:
    model, sampler = load(xl_folder), SamplerSettings(num_inference_steps=3, spacing="leading", final="first_alpha")
    base = ours(model, sampler)
    generator = torch.Generator().manual_seed(0)
    add_lora(model.network, LoraSettings(rank=3), seed=1)
    for parameter in lora_parameters(model.network)[1::2]:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    modules = {f"unet.{name}": Factors(a, b) for name, (a, b) in lora_factors(model.network).items()}
    file = tmp_path / "adapter.safetensors"
    write_adapter(Adapter(modules, model.family.name), file)
    assert all(name.startswith("lora_unet_") for name in load_file(file))
    assert read_adapter(file).family == "sdxl"
    tuned = ours(model, sampler)
    assert (tuned - base).abs().max() > 1e-2
    pipeline = pipeline_of(xl_folder, timestep_spacing="leading")
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    same(tuned, theirs(pipeline, model, sampler))
