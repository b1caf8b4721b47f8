"""Networks are read when they are needed, in the precision they are used in, and never all at once."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from draft.diffusion.embedding import embed, embed_texts
from draft.diffusion.families import components, load_text_to_image
from draft.diffusion.generate import generate_images
from draft.diffusion.settings import SamplerSettings
from draft.errors import DraftError
from draft.evaluation.evaluate import evaluate
from draft.evaluation.settings import EvaluateSettings, GenerateSettings
from draft.generation.generate import generate
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.types import Prompts, Size

CPU = torch.device("cpu")
PROMPTS = ["a cat", "two grey birds", "", "a very long prompt of many words", "é!"]


class Bright(Reward):
    """How bright an image is."""

    name = "bright"

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


class Memory:
    """Which networks are there, at every moment when one more is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: dict[str, weakref.ref[nn.Module]] = {}
        self.together: list[set[str]] = []
        original = components.Components.__getitem__

        def getitem(held: Any, name: str) -> Any:
            network = original(held, name)
            if self.alive.get(name) is None or self.alive[name]() is not network:
                self.alive[name] = weakref.ref(network)
                gc.collect()
                self.together.append({each for each, reference in self.alive.items() if reference() is not None})
            return network

        monkeypatch.setattr(components.Components, "__getitem__", getitem)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


WAYS = ("train", "evaluate", "generate", "search", "strip", "compare", "trial")


@pytest.mark.parametrize("way", WAYS)
def test_text_encoder_and_denoiser_are_never_there_together(way, memory, tiny_model, tmp_path, monkeypatch) -> None:
    prompts, terms, sampler = Prompts(PROMPTS[:2]), [Term("bright", Bright())], {"num_inference_steps": 2}
    common: dict[str, Any] = {"model": str(tiny_model), "prompts": prompts, "folder": tmp_path, "progress": Silent()}
    settings = SamplerSettings(**sampler)
    match way:
        case "train":
            from draft.training.settings import TrainSettings
            from draft.training.train import train

            chosen = TrainSettings(sampler=settings, max_steps=1, batch_size=2, device="cpu")
            train(chosen, terms=terms, seed=0, **common)
        case "evaluate":
            chosen = EvaluateSettings(sampler=settings, bootstrap_samples=100, device="cpu")
            evaluate(chosen, adapters={}, terms=terms, seed=0, **common)
        case "generate":
            generate(GenerateSettings(sampler=settings, device="cpu"), adapters={}, seed=0, **common)
        case "search":
            from draft.diffusion.control.values import PromptSearch

            method = PromptSearch(modifiers=("red",), budget=2)
            generate(
                GenerateSettings(sampler=settings, device="cpu"),
                method=method, adapters={}, terms=terms, seed=0, **common,
            )  # fmt: skip
        case "strip":
            from draft.strips.settings import StripSettings
            from draft.strips.strip import draw_strip

            monkeypatch.setattr("draft.strips.strip.cells_of", lambda settings, count: ((),))
            monkeypatch.setattr("draft.strips.strip.Strip", _stop)
            with pytest.raises(_Stopped):
                draw_strip(StripSettings(sampler=settings, device="cpu"), adapters={}, terms=terms, **common)
        case "compare":
            from draft.comparison import compare
            from draft.comparison.compare import _measure_base
            from draft.comparison.settings import ComparisonSettings, MeasureSettings
            from draft.comparison.training import TrainingInputs

            assert compare
            _measure_base(
                ComparisonSettings(sampler=settings, device="cpu"),
                TrainingInputs(model=str(tiny_model), prompts=prompts, terms=terms),
                MeasureSettings(), prompts, [], 0,
            )  # fmt: skip
        case "trial":
            from draft.authoring.ascent import Budget
            from draft.authoring.trial import TrialSettings, try_reward

            chosen = TrialSettings(model=str(tiny_model), budget=Budget(steps=1, seconds=60), device="cpu")
            try_reward(Bright(), list(prompts), chosen, Silent())
    assert set().union(*memory.together) == {"text_encoder", "unet", "vae"}
    assert not any({"text_encoder", "unet"} <= together for together in memory.together), memory.together


class _Stopped(Exception):
    pass


def _stop(**arguments: Any) -> None:
    raise _Stopped


def test_weights_are_read_in_the_precision_that_they_are_used_in(tiny_model: Path, monkeypatch) -> None:
    from draft.diffusion.families import sd

    seen: dict[str, set[torch.dtype]] = {}
    read = sd.read_component

    def read_component(model: str, folder: Path, component: str, kind: Any, dtype: torch.dtype) -> nn.Module:
        network = read(model, folder, component, kind, dtype)
        seen[component] = {p.dtype for p in network.parameters()}
        return network

    monkeypatch.setattr(sd, "read_component", read_component)
    exact = load_text_to_image(str(tiny_model), device=CPU, dtype=torch.float32)
    coarse = load_text_to_image(str(tiny_model), device=CPU, dtype=torch.bfloat16)
    for name in ("unet", "vae", "text_encoder"):
        wanted = {key: value.to(torch.bfloat16) for key, value in exact.components[name].state_dict().items()}  # type: ignore[attr-defined]
        got = coarse.components[name].state_dict()  # type: ignore[attr-defined]
        assert seen.pop(name) == {torch.bfloat16}
        assert all(torch.equal(wanted[key], got[key]) for key in wanted)


def test_dropped_encoders_are_gone_and_asking_for_them_is_an_error(tiny_model: Path) -> None:
    model: Any = load_text_to_image(str(tiny_model), device=CPU, dtype=torch.float32)
    reference = weakref.ref(model.encoders["text_encoder"])
    model.drop_encoders()
    gc.collect()
    assert reference() is None and dict(model.encoders) == {}
    with pytest.raises(RuntimeError, match="the text_encoder was dropped"):
        model.encode(["a"], model.default_size)


def test_a_network_with_missing_weights_is_refused_before_any_is_read(tiny_model, tmp_path, memory) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DraftError, match="no .safetensors file in"):
        load_text_to_image(str(folder), device=CPU, dtype=torch.float32)
    assert memory.together == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompts_embedding_has_the_same_bits_whatever_is_embedded_with_it(
    tiny_model: Path, threads: int, dtype: torch.dtype
) -> None:
    model = load_text_to_image(str(tiny_model), device=CPU, dtype=dtype)
    size, before = model.default_size, torch.get_num_threads()
    batches: set[int] = set()
    # Not all libraries of all devices are as kind as this machine's, on which batches of any size may agree.
    model.encoders["text_encoder"].register_forward_pre_hook(lambda _, inputs: batches.add(len(inputs[0])))
    torch.set_num_threads(threads)
    try:
        alone = [model.encode([prompt], size).tensors["text"] for prompt in PROMPTS]
        many = [*PROMPTS, *(f"filler {k}" for k in range(70)), *reversed(PROMPTS)]
        together = embed_texts(model, many, size).tensors["text"]
        embedded = embed(model, [*PROMPTS, *PROMPTS], size, negative_prompt="a cat")
    finally:
        torch.set_num_threads(before)
    for number, prompt in enumerate(PROMPTS):
        for row in (together[number], together[-1 - number], embedded.take([prompt], CPU).tensors["text"][0]):
            assert torch.equal(row, alone[number][0])
    assert torch.equal(embedded.unconditional.tensors["text"], alone[0])
    assert len(embedded.conditioning) == len(PROMPTS) and batches == {1}


def test_images_that_are_not_square_are_as_tall_and_as_wide_as_asked(tiny_model: Path) -> None:
    model = load_text_to_image(str(tiny_model), device=CPU, dtype=torch.float32)
    sampler = SamplerSettings(num_inference_steps=2)
    (images,) = generate_images(model, ["a cat"], [0], sampler, size=Size(24, 32))
    assert images.shape == (1, 3, 24, 32)
    assert model.schedule(Size(24, 32), 2) == model.schedule(model.default_size, 50)


def renamed(folder: Path, tiny_model: Path, names: Callable[[str], str]) -> Path:
    """A copy of the tiny model whose text encoder's tensors have other names; an empty one leaves a tensor out."""
    shutil.copytree(tiny_model, folder)
    (file,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = {names(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, file, {"format": "pt"})
    return folder


def test_text_encoders_are_read_by_the_names_of_transformers_4_and_of_5(tiny_model: Path, tmp_path: Path) -> None:
    texts = []
    for prefix in ("", "text_model."):
        names = lambda name, prefix=prefix: prefix + name.removeprefix("text_model.")  # noqa: E731
        folder = renamed(tmp_path / f"model{prefix}", tiny_model, names)
        model = load_text_to_image(str(folder), device=CPU, dtype=torch.float32)
        texts.append(model.encode(["a cat"], model.default_size).tensors["text"])
    torch.testing.assert_close(texts[0], texts[1], rtol=0, atol=0)


def test_weights_that_lack_tensors_are_refused_where_the_libraries_draw_them_at_random(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = renamed(tmp_path / "model", tiny_model, lambda name: "" if "final_layer_norm" in name else name)
    model = load_text_to_image(str(folder), device=CPU, dtype=torch.float32)
    lacking = "the weights of its text_encoder lack 2 tensors of CLIPTextModel, e.g. '.*norm"
    with pytest.raises(DraftError, match=lacking) as raised:
        model.encode(["a cat"], model.default_size)
    assert raised.value.hint == "text_encoder/ must hold a whole CLIPTextModel"
