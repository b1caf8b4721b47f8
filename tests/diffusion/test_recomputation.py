"""Recomputed blocks: the same gradient to the last bit, with less kept for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from draft.diffusion.families import load_text_to_image
from draft.diffusion.families.components import can_recompute, recompute_blocks
from draft.diffusion.lora import add_lora, lora_off, lora_parameters
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.methods.values import AdjointMatching, Draft, DraftK, DraftLV
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.training.settings import CheckpointSettings, TrainSettings
from draft.training.train import train
from draft.types import Prompts

CPU = torch.device("cpu")


class Bright(Reward):
    """How bright an image is."""

    name = "bright"

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: images.square().mean(dim=(1, 2, 3))


@dataclass
class Saved:
    """Bytes of activations that are held for the backward pass; a storage that several tensors share counts once."""

    now: int = 0
    peak: int = 0
    held: dict[int, int] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> Any:
        return _Held(self, tensor) if not isinstance(tensor, torch.nn.Parameter) else tensor

    def unpack(self, packed: Any) -> Tensor:
        return packed.tensor if isinstance(packed, _Held) else packed


class _Held:
    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.saved, self.tensor = saved, tensor
        storage = tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        if saved.held.setdefault(self.key, 0) == 0:
            saved.now += self.size
            saved.peak = max(saved.peak, saved.now)
        saved.held[self.key] += 1

    def __del__(self) -> None:
        self.saved.held[self.key] -= 1
        if self.saved.held[self.key] == 0:
            self.saved.now -= self.size


@contextmanager
def counting() -> Iterator[Saved]:
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        yield saved


@pytest.fixture(scope="module")
def deep(tiny_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of several blocks, as a single one could not be recomputed in parts."""
    unet = {"layers_per_block": 3, "block_out_channels": (8, 16)}
    vae = {"layers_per_block": 3, "block_out_channels": (8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 3,
           "up_block_types": ("UpDecoderBlock2D",) * 3}  # fmt: skip
    return tiny_module.save_tiny_model(tmp_path_factory.mktemp("deep") / "model", unet=unet, vae=vae)


@pytest.fixture
def model(deep: Path) -> Any:
    loaded: Any = load_text_to_image(str(deep), device=CPU, dtype=torch.float32)
    add_lora(loaded.network, LoraSettings(rank=2), seed=0)
    with torch.no_grad():
        for parameter in lora_parameters(loaded.network)[1::2]:
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return loaded


def denoised(model: Any) -> Callable[[], Tensor]:
    x, text = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0)), model.encode(["a"] * 4, None)
    return lambda: model.denoise(x, torch.tensor(500), text)


def decoded(model: Any) -> Callable[[], Tensor]:
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    model.leaf = x
    return lambda: model.decode(x)


@pytest.mark.parametrize("call", [denoised, decoded])
def test_the_gradient_is_the_same_to_the_last_bit_and_less_is_kept_for_it(model: Any, call: Any) -> None:
    output, found = call(model), []
    wanted = [model.leaf] if call is decoded else lora_parameters(model.network)
    for on in (False, True, False):
        assert model.checkpoint_blocks(on)
        with counting() as saved:
            value = output()
            kept = saved.now
            gradients = torch.autograd.grad(value.square().mean(), wanted)
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
        found.append((value.detach(), gradients, kept, saved.peak))
    plain, recomputed, again = found
    for one in (recomputed, again):
        assert torch.equal(one[0], plain[0])
        assert all(torch.equal(a, b) for a, b in zip(one[1], plain[1], strict=True))
    assert recomputed[2] < plain[2] / 2, (recomputed[2:], plain[2:])
    assert recomputed[3] < plain[3], (recomputed[2:], plain[2:])
    assert again[2:] == plain[2:]


def test_the_networks_stay_in_evaluation_mode_and_values_without_gradient_are_the_same(model: Any) -> None:
    output = denoised(model)
    with torch.no_grad():
        plain = output()
        model.checkpoint_blocks(True)
        with counting() as saved:
            assert torch.equal(output(), plain)
    assert saved.peak == 0
    assert not any(m.training for name in ("unet", "vae") for m in model.components[name].modules() if _acts(m))


def _acts(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Dropout) or hasattr(module, "gradient_checkpointing")


def test_a_block_is_recomputed_with_the_adapters_that_were_on(model: Any) -> None:
    """The backward pass of a call of the base model comes when the adapter is on again."""
    text, time = model.encode(["a"] * 2, None), torch.tensor(500)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    parameters, found = lora_parameters(model.network), []
    for on in (False, True):
        model.checkpoint_blocks(on)
        with lora_off(model.network):
            base = model.denoise(x, time, text)
        adapted = model.denoise(x, time, text)
        (outer,) = torch.autograd.grad(base.square().mean(), x)
        with lora_off(model.network):
            inner = torch.autograd.grad(adapted.square().mean(), x)
        again = torch.autograd.grad(model.denoise(x, time, text).square().mean(), parameters)
        found.append((outer, *inner, *again))
        assert all(parameter.requires_grad for parameter in parameters)
        assert torch.equal(model.denoise(x, time, text), adapted)
    assert not torch.equal(found[0][0], found[0][1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


METHODS: dict[str, Any] = {
    "draft_lv": DraftLV(copies=2), "draft_k": DraftK(k=2), "draft": Draft(), "adjoint_matching": AdjointMatching()
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_training_with_recomputation_writes_the_same_bytes(name: str, deep: Path, tmp_path: Path) -> None:
    files = []
    for setting in (False, True):
        settings = TrainSettings(
            method=METHODS[name],
            sampler=SamplerSettings(num_inference_steps=4, guidance_scale=2.0, eta=float(name == "adjoint_matching")),
            lora=LoraSettings(rank=2),
            learning_rate=1e-2,
            max_steps=2,
            batch_size=2,
            gradient_checkpointing=setting,
            checkpoint=CheckpointSettings(every=0),
            device="cpu",
        )
        folder = tmp_path / str(setting)
        train(
            settings, model=str(deep), prompts=Prompts(["a cat", "a dog"]), terms=[Term("bright", Bright())], seed=3,
            folder=folder, progress=Silent(),
        )  # fmt: skip
        files.append(load_file(folder / "adapter.safetensors"))
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


def test_a_network_that_cannot_recompute_is_left_as_it_is() -> None:
    plain = torch.nn.Linear(2, 2)
    assert not can_recompute(plain) and not recompute_blocks(plain, True)
    assert torch.equal(plain(torch.ones(1, 2)), plain(torch.ones(1, 2)))
