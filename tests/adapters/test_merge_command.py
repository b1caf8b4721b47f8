"""`draft merge`: adapters in a model's own weights, what of them survives, and what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from draft.adapters.files.formats import Adapter, Factors, denoiser_factors, read_adapter, write_adapter
from draft.adapters.mixture import mix_files
from draft.adapters.model import merging, writing
from draft.adapters.strength import Strength
from draft.diffusion.families import load_text_to_image
from draft.diffusion.lora import load_lora, use_lora
from draft.errors import ConfigError, DraftWarning, ResourceError, StageError
from draft.rewards.extensions import model_path
from draft_cli.merge import merge

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
FC = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "model")
    return Path("model")


def loaded(path: Path) -> dict[str, Tensor]:
    """Copies: before safetensors 0.8 what `load_file` gives changes with the file."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def weights(model: Path) -> dict[str, Tensor]:
    """By the names that adapters have."""
    text = {name.replace("text_model.", ""): tensor for name, tensor in load_file(model / TEXT).items()}
    tensors = {f"unet.{name}": tensor for name, tensor in load_file(model / UNET).items()}
    return tensors | {f"text_encoder.text_model.{name}": tensor for name, tensor in text.items()}


def save_adapter(model: Path, name: str, *, seed: int = 0, size: float = 1.0) -> dict[str, Tensor]:
    """An adapter for every linear layer and convolution; gives its dense changes in float64."""
    generator, modules = torch.Generator().manual_seed(seed), {}
    for key, weight in weights(model).items():
        if key.endswith(".weight") and weight.ndim > 1 and "embedding.weight" not in key:
            tail = weight.shape[1:]
            down = torch.randn(2, *tail, generator=generator)
            up = size * torch.randn(len(weight), 2, *([1] * (len(tail) - 1)), generator=generator)
            modules[key.removesuffix(".weight")] = Factors(down, up, 1.0)
    write_adapter(Adapter(modules), Path(name), format="diffusers")
    return {key: (f.up.double().flatten(1) @ f.down.double().flatten(1)) for key, f in modules.items()}


def halve(model: Path, dtype: torch.dtype) -> None:
    """The model in a smaller dtype."""
    for file in (UNET, TEXT):
        save_file({k: t.to(dtype) for k, t in load_file(model / file).items()}, model / file, metadata={"format": "pt"})


def test_a_merged_model_is_the_sum_of_weights_and_changes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save_adapter(model, "a.safetensors"), save_adapter(model, "b.safetensors", seed=1)
    before = weights(model)
    inputs = ["a.safetensors:0.7:0.3", "b.safetensors:-0.2"]
    merge(str(model), inputs, output=Path("out"), block=["a:mid_block=0.5"], component=["text_encoder=2"])
    after = weights(Path("out"))
    assert set(after) == set(before)
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        if module not in a or module == name:
            assert torch.equal(after[name], weight), name
            continue
        of_a = 0.6 if module.startswith("text") else 0.35 if "mid_block" in module else 0.7
        change = of_a * a[module] + (-0.4 if module.startswith("text") else -0.2) * b[module]
        torch.testing.assert_close(after[name].double().flatten(1), weight.double().flatten(1) + change, msg=name)
    # What is not changed is copied byte for byte, and nothing else is there.
    for path in model.rglob("*"):
        copy = Path("out") / path.relative_to(model)
        assert path.is_dir() or copy.is_file()
        if path.is_file() and path.parent.name not in ("unet", "text_encoder"):
            assert copy.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in Path().iterdir()) == ["a.safetensors", "b.safetensors", "model", "out"]
    out = capsys.readouterr().out
    assert "+0.7 x a.safetensors  (89 modules, text encoders +0.3, mid_block times 0.5)\n" in out
    with safe_open(Path("out") / UNET, "pt") as file:
        recipe = json.loads(file.metadata()["draft.recipe"])
    assert recipe["kind"] == "merge" and [entry["name"] for entry in recipe["inputs"]] == ["a", "b"]
    assert str(Path.cwd()) not in json.dumps(recipe)


@pytest.mark.parametrize(
    ("held", "asked", "size"),
    [
        (torch.bfloat16, "same", 3e-5),
        (torch.float16, "same", 1e-3),
        (torch.float32, "same", 1e-2),
        (torch.float32, "bf16", 1e-2),
        (torch.float16, "fp32", 1e-4),
    ],
)
def test_the_printed_figures_are_those_of_a_dense_computation(
    model: Path, capsys: pytest.CaptureFixture[str], held: torch.dtype, asked: str, size: float
) -> None:
    if held != torch.float32:
        halve(model, held)
    changes = save_adapter(model, "a.safetensors", size=size)
    before = weights(model)
    with pytest.warns(DraftWarning, match="survives rounding") if held == torch.bfloat16 else nullcontext():
        merge(str(model), ["a.safetensors:0.5"], output=Path("out"), dtype=asked, json=True)
    report = json.loads(capsys.readouterr().out)
    after = weights(Path("out"))
    dtype = next(iter(after.values())).dtype
    shares, errors, sums = {}, {}, torch.zeros(3, dtype=torch.float64)
    for name, change in changes.items():
        was, now = before[f"{name}.weight"], after[f"{name}.weight"].double().flatten(1)
        change, exact = 0.5 * change, was.double().flatten(1) + 0.5 * change
        moved = now - was.to(dtype).double().flatten(1)
        row = torch.stack([change.square().sum(), (now - exact).square().sum(), (moved * change).sum()])
        sums += row
        shares[name], errors[name] = float(row[2] / row[0]), float((row[1] / row[0]).sqrt())
    assert report["surviving_share"] == pytest.approx(float(sums[2] / sums[0]), rel=1e-3)
    assert report["relative_error"] == pytest.approx(float((sums[1] / sums[0]).sqrt()), rel=1e-3)
    assert report["smallest_surviving_share"] == pytest.approx(min(shares.values()), rel=1e-3)
    assert report["largest_relative_error"] == pytest.approx(max(errors.values()), rel=1e-3)
    assert report["worst_module"] == max(errors, key=lambda name: errors[name])
    if held == torch.bfloat16:
        assert report["surviving_share"] < 0.5, "bfloat16 loses most of a small adapter"


def test_a_merged_model_draws_what_the_model_with_the_adapter_draws(model: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    save_adapter(model, "a.safetensors", size=0.2)
    merge(str(model), ["a.safetensors:0.7"], output=Path("out"))

    def drawn(pipeline: Any) -> Tensor:
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        return pipeline("ab", num_inference_steps=3, generator=noise, output_type="latent").images

    base = StableDiffusionPipeline.from_pretrained(model)
    plain = drawn(base)
    base.load_lora_weights(".", weight_name="a.safetensors")
    base.fuse_lora(lora_scale=0.7)
    with_adapter = drawn(base)
    merged = drawn(StableDiffusionPipeline.from_pretrained("out"))
    torch.testing.assert_close(merged, with_adapter, rtol=1e-4, atol=1e-4)
    assert (merged - plain).abs().max() > 0.05


def test_merging_a_mix_and_merging_its_inputs_are_the_same(model: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        save_adapter(model, f"{name}.safetensors", seed=seed)
    inputs = [(Path("a.safetensors"), Strength(0.7, 0.1)), (Path("b.safetensors"), Strength(-0.5))]
    mix_files(inputs, Path("mix.safetensors"))
    one = merging.merge_files(model, inputs, Path("one"))
    two = merging.merge_files(model, [(Path("mix.safetensors"), 1.0)], Path("two"))
    assert one.total.size == pytest.approx(two.total.size, rel=1e-6)
    second = weights(Path("two"))
    for name, tensor in weights(Path("one")).items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-5, atol=1e-5)


def test_shards_keep_their_index_and_other_variants_are_not_copied(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = loaded(model / UNET)
    whole = weights(model)
    (model / UNET).rename("whole.safetensors")
    names, table = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, model / "unet" / file)
        table |= dict.fromkeys(part, file)
    index = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    size = sum(tensor.nbytes for tensor in tensors.values())
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": table}))
    for other in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"):
        (model / "unet" / other).write_bytes(Path("whole.safetensors").read_bytes())
    (model / "v1.ckpt").write_bytes(b"x")
    changes = save_adapter_of(whole, "a.safetensors")
    merge(str(model), ["a.safetensors"], output=Path("out"), dtype="fp16", json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["not_copied"] == ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"]
    assert sorted(p.name for p in Path("out/unet").iterdir()) == sorted(
        ["config.json", index.name, *set(table.values())]
    )
    assert not (Path("out") / "v1.ckpt").exists()
    written = json.loads((Path("out") / "unet" / index.name).read_text())
    assert written == {"metadata": {"total_size": size // 2}, "weight_map": table}
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    after = load_file(Path("out") / "unet" / table[name])[name]
    assert after.dtype == torch.float16
    torch.testing.assert_close(after.double(), tensors[name].double() + changes[Q], rtol=1e-3, atol=1e-3)
    index.write_text("{")
    with pytest.raises(StageError, match="the index of the shards is damaged"):
        merge(str(model), ["a.safetensors"], output=Path("other"))
    untouched = load_file(Path("out") / "vae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in untouched.values()} == {torch.float32}


def save_adapter_of(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """An adapter for one module."""
    rows, columns = tensors[f"{Q}.weight"].shape
    factors = Factors(torch.randn(1, columns), torch.randn(rows, 1))
    write_adapter(Adapter({Q: factors}), Path(name))
    return {Q: factors.up.double() @ factors.down.double()}


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises((ConfigError, StageError)) as error:
        merge(*arguments, **options)
    assert not Path("out").exists() and not list(Path().glob(".*partial*"))
    return str(error.value)


def test_what_the_model_lacks_is_named(model: Path) -> None:
    factors, wrong = Factors(torch.ones(1, 16), torch.ones(16, 1)), Factors(torch.ones(1, 9), torch.ones(16, 1))
    other = "unet.up_blocks.3.attentions.0.proj_in"
    write_adapter(Adapter({Q: factors, other: factors}), Path("a.safetensors"))
    text = refusal(str(model), ["a.safetensors"], output=Path("out"))
    assert f"the model lacks 1 of the 2 modules of the adapters ({other})" in text and f"--block '{other}=0'" in text
    merge(str(model), ["a.safetensors"], output=Path("fine"), block=[f"{other}=0"])
    write_adapter(Adapter({other: factors}), Path("b.safetensors"))
    text = refusal(str(model), ["b.safetensors"], output=Path("out"))
    assert (
        "the model has none of the 1 modules of the adapters, which are of the family sd (it is of the family sd)"
        in text
    )
    write_adapter(Adapter({Q: wrong}), Path("c.safetensors"))
    assert f"{Q} is 16 x 16 in the model, its change 16 x 9" in refusal(
        str(model), ["c.safetensors"], output=Path("out")
    )


def test_pickles_quantised_weights_and_weights_that_are_not_finite_are_refused(model: Path) -> None:
    save_adapter_of(weights(model), "a.safetensors")
    tensors, name = loaded(model / UNET), Q.removeprefix("unet.") + ".weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, model / UNET)
    assert "(got F8_E4M3)" in refusal(str(model), ["a.safetensors"], output=Path("out"))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, model / UNET)
    text = refusal(str(model), ["a.safetensors"], output=Path("out"))
    assert "a weight has values that are not finite" in text and Q in text
    save_file({key: tensor.half() for key, tensor in tensors.items()}, model / UNET)
    text = refusal(str(model), ["a.safetensors:1e6"], output=Path("out"))
    assert "a weight would have, in float16, values that are not finite" in text
    save_file(tensors | {"conv_in.bias": torch.full_like(tensors["conv_in.bias"], 1e6)}, model / UNET)
    text = refusal(str(model), ["a.safetensors"], output=Path("out"), dtype="fp16")
    assert "conv_in.bias has values that are too large for float16" in text
    (model / UNET).rename(model / "unet" / "diffusion_pytorch_model.bin")
    assert "the weights of the model's unet are pickles" in refusal(str(model), ["a.safetensors"], output=Path("out"))


def test_an_output_that_would_harm_something_is_refused(model: Path) -> None:
    save_adapter_of(weights(model), "a.safetensors")
    words = (str(model), ["a.safetensors"])
    assert "the output is the model, or in it, or around it" in refusal(*words, output=Path("model"), force=True)
    assert "the output is the model, or in it, or around it" in refusal(*words, output=Path("model/x"))
    assert "the output is the model, or in it, or around it" in refusal(*words, output=Path("."), force=True)
    assert "the model is a folder, so the output is one" in refusal(*words, output=Path("out.safetensors"))
    Path("circle").symlink_to("circle")
    assert "circle: the path cannot be used" in refusal(*words, output=Path("circle"), force=True)
    assert "there is no model 'nothing'" in refusal("nothing", words[1], output=Path("out"))
    assert "no such adapter file" in refusal(words[0], ["b.safetensors"], output=Path("out"))
    Path("precious").mkdir()
    Path("precious/file").write_text("x")
    assert "the output is already there" in refusal(*words, output=Path("precious"))
    assert "the folder holds no model, so that it is not replaced" in refusal(
        *words, output=Path("precious"), force=True
    )
    assert Path("precious/file").read_text() == "x"


def test_force_replaces_a_model_and_a_failure_leaves_it_as_it_was(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_adapter_of(weights(model), "a.safetensors")
    merge(str(model), ["a.safetensors"], output=Path("there"))
    first = (Path("there") / UNET).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_copy", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            merge(str(model), ["a.safetensors:2"], output=Path("there"), force=True)
    assert (Path("there") / UNET).read_bytes() == first
    assert sorted(p.name for p in Path().iterdir()) == ["a.safetensors", "model", "there"]
    merge(str(model), ["a.safetensors:2"], output=Path("there"), force=True)
    assert (Path("there") / UNET).read_bytes() != first
    assert sorted(p.name for p in Path().iterdir()) == ["a.safetensors", "model", "there"]


def test_a_file_of_kronecker_products_is_merged_as_it_is(model: Path) -> None:
    before = weights(model)[f"{Q}.weight"]
    first, second = torch.randn(4, 4), torch.randn(4, 4)
    name = f"lora_unet_{Q.removeprefix('unet.').replace('.', '_')}"
    save_file({f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}, "lokr.safetensors")
    merge(str(model), ["lokr.safetensors:0.5"], output=Path("out"))
    wanted = before.double() + 0.5 * torch.kron(first.double(), second.double())
    torch.testing.assert_close(weights(Path("out"))[f"{Q}.weight"], wanted.float())


def test_a_dry_run_gives_the_figures_and_writes_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapter_of(weights(model), "a.safetensors")
    merge(str(model), ["a.safetensors"], output=Path("out"), dry_run=True, json=True)
    dry = json.loads(capsys.readouterr().out)
    assert dry["written"] is False and sorted(p.name for p in Path().iterdir()) == ["a.safetensors", "model"]
    merge(str(model), ["a.safetensors"], output=Path("out"), json=True)
    wet = json.loads(capsys.readouterr().out)
    assert {**wet, "written": False} == dry
    assert wet["bytes"] == (Path("out") / UNET).stat().st_size


@pytest.mark.parametrize("name", ["emoji", "emoji_xl"])
def test_a_merged_embedded_model_computes_what_the_model_with_the_adapter_does(
    tmp_path: Path, name: str, tiny_module: ModuleType
) -> None:
    base, merged, path = model_path(name), tmp_path / "merged", tmp_path / "a.safetensors"
    adapter = read_adapter(tiny_module.save_tiny_adapter(Path(base), path))
    merge(name, [f"{path}:0.01"], output=merged, dtype="fp32")
    one, two = (load_text_to_image(str(m), device=torch.device("cpu"), dtype=torch.float32) for m in (base, merged))
    network: Any = one.network
    width = int(network.config.cross_attention_dim)
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(1, 6, width),
    }
    if name == "emoji_xl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(1, width // 2), "time_ids": torch.randn(1, 6)}
    with torch.no_grad():
        plain = network(**inputs).sample
        load_lora(network, denoiser_factors(adapter), name="a")
        use_lora(network, "a", 0.01)
        wanted, got = network(**inputs).sample, two.network(**inputs).sample
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    assert (wanted - plain).abs().max() > 0.05


def test_a_change_that_float16_cannot_hold_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged, path = tmp_path / "merged", tmp_path / "a.safetensors"
    factors = Factors(torch.randn(2, 160), torch.randn(160, 2) * 1e-5)
    write_adapter(Adapter({Q: factors}), path)
    with pytest.warns(DraftWarning, match="of the change survives rounding to float16"):
        merge("emoji", [str(path)], output=merged)
    assert f"wrote {merged}  (1 module changed, float16, " in capsys.readouterr().out
