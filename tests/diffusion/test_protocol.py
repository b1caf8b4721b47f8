"""What every family's model must do, whatever it is; `tests/tiny.py` has one of each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.adapters.files.formats import Adapter, Factors, denoiser_factors, read_adapter, write_adapter
from draft.diffusion.families import count_parameters, families, family_of, load_text_to_image, trainable
from draft.diffusion.generate import generate_images
from draft.diffusion.guidance import guide
from draft.diffusion.lora import add_lora, load_lora, lora_factors, lora_parameters, use_lora
from draft.diffusion.schedule import make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DraftError
from draft.types import Size

_FILE = Path(__file__).parents[1] / "tiny.py"
_SPEC = importlib.util.spec_from_file_location(_FILE.stem, _FILE)
assert _SPEC is not None and _SPEC.loader is not None
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

CPU = torch.device("cpu")
SIZE = Size(16, 24)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / request.param)


@pytest.fixture
def model(folder: Path) -> Any:
    return load_text_to_image(str(folder), device=CPU, dtype=torch.float32)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors | other.tensors)


def test_every_family_that_can_be_trained_has_a_tiny_model() -> None:
    ours = {name for name in families() if families()[name].load.startswith("draft.")}
    assert set(tiny.FAMILIES) == ours <= {family.name for family in trainable()}


def test_its_row_its_folder_and_its_counts_agree(folder: Path, model: Any) -> None:
    assert model.family is family_of(str(folder)) and model.family.name == folder.name
    assert (model.device, model.dtype) == (CPU, torch.float32)
    assert list(model.encoders) == list(model.family.encoders)
    networks = {model.family.part: model.network, **model.encoders}
    assert count_parameters(str(folder)) == {
        name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()
    }
    assert not any(p.requires_grad for network in networks.values() for p in network.parameters())
    assert any(name.endswith(model.family.targets) for name, _ in model.network.named_modules())


def test_a_prompt_is_conditioned_alike_alone_and_among_others(model: Any) -> None:
    calls: set[int] = set()
    for encoder in model.encoders.values():
        encoder.register_forward_pre_hook(lambda _, inputs: calls.add(len(inputs[0])))
    alone, together = model.encode(["two cats"], SIZE), model.encode(["a", "two cats", "b"], SIZE)
    assert len(together) == 3 and same(alone, together[1:2]) and calls == {1}
    assert len(model.unconditional("", SIZE)) == len(model.unconditional("bad", SIZE)) == 1
    assert not same(model.unconditional("bad", SIZE), model.unconditional("", SIZE))
    assert model.unconditional("bad", SIZE).tensors.keys() == alone.tensors.keys()


def test_latents_go_in_and_images_come_out_in_the_size_asked_for(model: Any) -> None:
    channels, height, width = model.latent_shape(SIZE)
    texts = model.encode(["a", "b"], SIZE)
    x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    grid = make_grid(model.schedule(SIZE, 3), SamplerSettings(num_inference_steps=3))
    with torch.no_grad():
        out = guide(model.denoise, grid, texts, model.unconditional("", SIZE), 3.0, rule=model.family.guidance)(x, 0)
        images = model.decode(x)
    assert out.shape == x.shape and out.dtype == torch.float32 and out.isfinite().all()
    assert images.shape == (2, 3, SIZE.height, SIZE.width)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    with pytest.raises(DraftError, match=r"must be a multiple of \d+ for this model \(got 16 x 23\)"):
        model.latent_shape(Size(16, 23))


def test_dropped_encoders_leave_a_model_that_draws(model: Any) -> None:
    sampler = SamplerSettings(num_inference_steps=2, guidance_scale=2.0)
    texts, blank = model.encode(["a"], SIZE), model.unconditional("", SIZE)
    model.drop_encoders()
    assert dict(model.encoders) == {}
    with pytest.raises(RuntimeError, match="was dropped"):
        model.encode(["a"], SIZE)
    grid = make_grid(model.schedule(SIZE, 2), sampler)
    with torch.no_grad():
        output = guide(model.denoise, grid, texts, blank, 2.0, rule=model.family.guidance)
        assert output(torch.zeros(1, *model.latent_shape(SIZE)), 0).isfinite().all()


def test_recomputed_blocks_give_the_same_gradient_to_the_last_bit(model: Any) -> None:
    add_lora(model.network, LoraSettings(rank=2), seed=0)
    parameters = lora_parameters(model.network)
    with torch.no_grad():
        for parameter in parameters[1::2]:
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    texts, time = model.encode(["a", "b"], SIZE), torch.tensor(500)
    x = torch.randn(2, *model.latent_shape(SIZE), generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for on in (False, True):
        assert model.checkpoint_blocks(on)
        images = model.decode(x - 0.1 * model.denoise(x, time, texts))
        found.append(torch.autograd.grad(images.square().mean(), [x, *parameters]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0])


def test_an_adapter_goes_into_a_file_and_comes_back(model: Any, tmp_path: Path) -> None:
    add_lora(model.network, LoraSettings(rank=2), seed=0)
    with torch.no_grad():
        for parameter in lora_parameters(model.network)[1::2]:
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    factors, part = lora_factors(model.network), model.family.part
    modules = {f"{part}.{name}": Factors(a, b, 1.0) for name, (a, b) in factors.items()}
    write_adapter(Adapter(modules, model.family.name), tmp_path / "one.safetensors")
    back = read_adapter(tmp_path / "one.safetensors")
    assert back.family == model.family.name
    load_lora(model.network, denoiser_factors(back), name="back")
    sampler, images = SamplerSettings(num_inference_steps=2, guidance_scale=2.0), []
    for name in ("default", "back", None):
        use_lora(model.network, name)
        images += generate_images(model, ["a cat"], [0], sampler, size=SIZE)
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)
    assert float((images[0] - images[2]).abs().max()) > 1e-3


def test_weights_in_bfloat16_are_read_so_and_draw(folder: Path) -> None:
    model: Any = load_text_to_image(str(folder), device=CPU, dtype=torch.bfloat16)
    (images,) = generate_images(model, ["a"], [0], SamplerSettings(num_inference_steps=2), size=SIZE)
    assert images.dtype == torch.float32 and images.isfinite().all()
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
