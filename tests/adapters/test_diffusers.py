"""Our files load through diffusers' and peft's own readers and change the model by exactly the same amount."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import PeftModel

import draft
from draft.adapters.algebra.deviation import deviation
from draft.adapters.algebra.mix import mix
from draft.adapters.files.container import read_tensors, write_tensors
from draft.adapters.files.formats import Adapter, Factors, Format, read_adapter, write_adapter
from draft.adapters.mixture import mix_files
from draft.adapters.settings import MixSettings
from draft.diffusion.families.peer_reader import read_as_diffusers
from draft.errors import StageError

WIDTH = 8


def make_unet() -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        ).eval()


def make_pipeline() -> StableDiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=make_unet(),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_adapter(seed: int, *, ranks: tuple[int, ...] = (3,), scale: float = 1.0, dtype=torch.float32) -> Adapter:
    """Factors for attention, feed-forward, convolutions and projections, their ranks taken in turn."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    kinds = ("to_q", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "downsamplers.0.conv")
    for i, (name, module) in enumerate(m for m in make_unet().named_modules() if m[0].endswith(kinds)):
        rank = ranks[i % len(ranks)]
        weight = module.weight
        down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.2
        up = torch.randn(weight.shape[0], rank, *([1, 1] if weight.ndim == 4 else []), generator=generator) * 0.2
        modules[f"unet.{name}"] = Factors(down.to(dtype), up.to(dtype), scale)
    return Adapter(modules)


def add_change(unet: UNet2DConditionModel, adapter: Adapter, weight: float = 1.0) -> None:
    modules = dict(unet.named_modules())
    with torch.no_grad():
        for name, factors in adapter.modules.items():
            change = factors.up.double().flatten(1) @ factors.down.double().flatten(1) * factors.scale * weight
            target = modules[name.removeprefix("unet.")].weight
            target += change.reshape(target.shape).to(target.dtype)


def predict(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, WIDTH, generator=generator)
    with torch.no_grad():
        return unet(latents, 500, text).sample


def picture(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    text = torch.randn(1, 5, WIDTH, generator=generator)
    return torch.from_numpy(
        pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=text * 0,
            num_inference_steps=2,
            output_type="np",
            generator=generator,
        ).images
    )


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("ranks", [(3,), (1, 4, 6)])
@pytest.mark.parametrize("scale", [1.0, -2.0])
def test_a_file_changes_diffusers_own_pipeline_by_exactly_its_dw(
    tmp_path: Path, format: Format, ranks: tuple[int, ...], scale: float
) -> None:
    adapter = make_adapter(1, ranks=ranks, scale=scale)
    write_adapter(adapter, tmp_path / "a.safetensors", format=format)
    wanted, loaded = make_pipeline(), make_pipeline()
    base = picture(wanted)
    add_change(wanted.unet, adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.load_lora_weights(tmp_path, weight_name="a.safetensors")
    torch.testing.assert_close(predict(loaded.unet), predict(wanted.unet), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(picture(loaded), picture(wanted), rtol=1e-3, atol=1e-3)
    assert (picture(loaded) - base).abs().max() > 0.01


@pytest.mark.parametrize("ranks", [(3,), (1, 4, 6)])
def test_a_peft_folder_loads_in_peft(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    adapter = make_adapter(1, ranks=ranks, scale=0.5)
    write_adapter(adapter, tmp_path / "folder", format="peft")
    wanted = make_unet()
    add_change(wanted, adapter)
    loaded = PeftModel.from_pretrained(make_unet(), str(tmp_path / "folder")).eval()
    torch.testing.assert_close(predict(loaded.base_model.model), predict(wanted), rtol=1e-4, atol=1e-4)
    assert sorted(read_adapter(tmp_path / "folder").modules) == sorted(adapter.modules)


def test_the_mixed_file_draws_what_diffusers_set_adapters_draws(tmp_path: Path) -> None:
    one, two = make_adapter(1, ranks=(3,), scale=2.0), make_adapter(2, ranks=(2, 5))
    write_adapter(one, tmp_path / "one.safetensors")
    write_adapter(two, tmp_path / "two.safetensors", format="diffusers")
    write_adapter(mix([(one, 0.7), (two, -0.3)]), tmp_path / "mix.safetensors")
    both, mixed = make_pipeline(), make_pipeline()
    both.load_lora_weights(tmp_path, weight_name="one.safetensors", adapter_name="one")
    both.load_lora_weights(tmp_path, weight_name="two.safetensors", adapter_name="two")
    both.set_adapters(["one", "two"], [0.7, -0.3])
    mixed.load_lora_weights(tmp_path, weight_name="mix.safetensors")
    torch.testing.assert_close(predict(mixed.unet), predict(both.unet), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(picture(mixed), picture(both), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [1.0, 3.0, 12.0])
def test_what_diffusers_itself_saves_is_read_with_its_alpha(tmp_path: Path, alpha: float) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    unet = make_unet()
    config = LoraConfig(r=3, lora_alpha=alpha, target_modules=["to_q", "to_v"], init_lora_weights=False)
    unet.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    adapter = read_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert {factors.scale for factors in adapter.modules.values()} == {alpha / 3}
    plain = make_unet()
    add_change(plain, adapter)
    torch.testing.assert_close(predict(plain), predict(unet), rtol=1e-4, atol=1e-4)


def embedded() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(draft.model_path("emoji"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.skipif(
    int(importlib.metadata.version("transformers").partition(".")[0]) < 5,
    reason="version 5 of transformers wrote the embedded model; of version 4, Draft can read it, diffusers cannot",
)
def test_on_the_embedded_model_the_mixed_file_draws_what_set_adapters_draws(tmp_path: Path) -> None:
    both, mixed = embedded(), embedded()
    for seed, (name, rank) in enumerate((("one", 4), ("two", 7))):
        generator = torch.Generator().manual_seed(seed)
        modules = {}
        for path, module in both.unet.named_modules():
            if path.endswith(("to_q", "to_k", "to_v", "to_out.0", "conv1")):
                weight = module.weight
                down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.1
                up = torch.randn(len(weight), rank, *([1, 1] if weight.ndim == 4 else []), generator=generator) * 0.1
                modules[f"unet.{path}"] = Factors(down, up, 0.5 + seed)
        write_adapter(Adapter(modules), tmp_path / f"{name}.safetensors")
        both.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
    inputs = [(tmp_path / "one.safetensors", 0.7), (tmp_path / "two.safetensors", -0.4)]
    report = mix_files(
        inputs, tmp_path / "mix.safetensors", settings=MixSettings(verify="full"), reader=read_as_diffusers
    )
    assert report.peer_error is not None and report.peer_error < 1e-6

    def image(pipeline: StableDiffusionPipeline) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
        return torch.from_numpy(pipeline("a red apple", generator=generator, **options).images)

    base = image(mixed)
    mixed.load_lora_weights(tmp_path, weight_name="mix.safetensors")
    both.set_adapters(["one", "two"], [0.7, -0.4])
    torch.testing.assert_close(image(mixed), image(both), rtol=0, atol=5e-5)
    assert (image(mixed) - base).abs().max() > 0.05


def test_our_reading_by_diffusers_sees_what_diffusers_loses(tmp_path: Path) -> None:
    """What `verify: full` is for: alphas that are there for us and not for diffusers."""
    adapter = make_adapter(1, ranks=(3,))
    write_adapter(adapter, tmp_path / "right.safetensors", format="diffusers")
    tensors, _ = read_tensors(tmp_path / "right.safetensors")
    path = tmp_path / "alphas.safetensors"
    alphas = {f"{name}.alpha": torch.tensor(6.0) for name in adapter.modules}
    write_tensors({**tensors, **alphas}, path, metadata={})
    assert {factors.scale for factors in read_adapter(path).modules.values()} == {2.0}
    assert {scale for _, _, scale in read_as_diffusers(path, "sd").values()} == {1.0}
    for file, weight in ((tmp_path / "right.safetensors", 1.0), (path, 0.5)):
        theirs = {name: Factors(*found) for name, found in read_as_diffusers(file, "sd").items()}
        ours = read_adapter(file).modules
        assert set(theirs) == set(ours)
        assert max(deviation(theirs[name], [(ours[name], weight)]).relative for name in ours) < 1e-6


def test_a_file_that_diffusers_stumbles_over_is_named(tmp_path: Path) -> None:
    write_tensors({"unet.lonely.lora_A.weight": torch.ones(2, 3)}, tmp_path / "a.safetensors", metadata={})
    with pytest.raises(StageError, match=r"diffusers cannot read the file \(KeyError"):
        read_as_diffusers(tmp_path / "a.safetensors", "sd")
    with pytest.raises(StageError, match="no reader for the family 'x'"):
        read_as_diffusers(tmp_path / "a.safetensors", "x")
