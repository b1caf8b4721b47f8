"""`draft verify`: what each tool makes of a file, its integrity, its exit codes."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor

from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.config import read_alphas
from draft.adapters.files.container import write_tensors
from draft.adapters.files.formats import Format, read_adapter, write_adapter
from draft.adapters.files.header import read_header
from draft.adapters.verification.contents import Contents, contents_of
from draft.adapters.verification.models import BaseModel, base_models
from draft.adapters.verification.tools import tools
from draft.adapters.verification.verdict import Verdict, judge
from draft.adapters.verification.verify import base_model, verify
from draft_cli.app import main
from draft_cli.verify import sentence
from draft_cli.verify import verify as command

BASES = {base.key: base for base in base_models()}
Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
K = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FF = "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"
TE = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
MLP = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def make(base: str, keep: Callable[[str], object] = lambda name: True, *, scale: float = 1.0) -> Adapter:
    """Rank-1 factors of a base model's modules in their real shapes."""
    modules = {}
    for name, shape in BASES[base].modules.items():
        if keep(name):
            down = torch.full((1, *shape[1:]), 0.5, dtype=torch.bfloat16)
            up = torch.full((shape[0], 1, *([1, 1] if len(shape) == 4 else [])), 0.5, dtype=torch.bfloat16)
            modules[name] = Factors(down, up, scale)
    return Adapter(modules, BASES[base].family)


def kohya(module: str) -> str:
    part, _, path = module.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}[part]
    return prefix + path.replace(".", "_")


def contents(
    base: str,
    names: dict[str, tuple[str, ...]],
    *,
    pair: tuple[str, str] = (".lora_up.weight", ".lora_down.weight"),
    rank: int | dict[str, int] = 4,
    alpha: float | dict[str, float] | None = None,
    header: dict[str, object] | None = None,
) -> Contents:
    """A file's names and shapes, strengths being those of its `.alpha` tensors, else of its header."""
    model: BaseModel = BASES[base]
    shapes, alphas, strengths = {}, {}, {}
    metadata = {} if header is None else {"lora_adapter_metadata": json.dumps(header)}
    found = read_alphas(None, metadata, where="")
    for name, modules in names.items():
        r = rank[name] if isinstance(rank, dict) else rank
        shapes[f"{name}{pair[0]}"] = (sum(model.modules[module][0] for module in modules), r)
        shapes[f"{name}{pair[1]}"] = (r, *model.modules[modules[0]][1:])
        a = alpha[name] if isinstance(alpha, dict) else alpha
        if a is not None:
            shapes[f"{name}.alpha"] = ()
            alphas[f"{name}.alpha"] = a
        strengths |= {module: found.scale(module, r) if a is None else a / r for module in modules}
    return Contents(shapes, alphas, found, header is not None, strengths)


def verdicts(base: str, file: Contents) -> dict[str, Verdict]:
    return {tool.name: judge(tool, BASES[base], file) for tool in tools()}


def statuses(base: str, file: Contents) -> dict[str, str]:
    return {name: verdict.status for name, verdict in verdicts(base, file).items()}


def judged(base: str, path: Path) -> list[Verdict]:
    """What the tools make of a file, which must be for the base model."""
    adapter = read_adapter(path)
    assert base_model(adapter) is BASES[base]
    assert all(BASES[base].fits(name, factors) for name, factors in adapter.modules.items())
    file = contents_of(path, adapter)
    return [judge(tool, BASES[base], file) for tool in tools()]


PEFT = (".lora_B.weight", ".lora_A.weight")


@pytest.mark.parametrize("base", ["sd1", "sd2"])
def test_what_we_write_for_stable_diffusion_loads_everywhere(tmp_path: Path, base: str) -> None:
    write_adapter(make(base, scale=2.0), tmp_path / "a.safetensors")
    found = verify(tmp_path / "a.safetensors")
    assert found.base == BASES[base] and found.right and not found.strange
    assert [verdict.status for verdict in found.verdicts] == ["all"] * 4
    assert {verdict.ratios for verdict in found.verdicts} == {(1.0,)}


def test_what_we_write_for_sdxl_loads_everywhere_where_loras_are_usual(tmp_path: Path) -> None:
    write_adapter(
        make("sdxl", lambda name: re.search(r"transformer_blocks|proj_(in|out)|self_attn|mlp", name)),
        tmp_path / "a.safetensors",
    )
    found = verify(tmp_path / "a.safetensors")
    assert found.modules > 900 and found.right


@pytest.mark.parametrize(
    ("format", "statuses"),
    [
        ("kohya", ["all", "all", "all", "all"]),
        ("diffusers", ["all", "some", "none", "refuses"]),
        ("peft", ["none", "none", "none", "refuses"]),
    ],
)
def test_the_formats_of_stable_diffusion_differ_in_who_loads_them(
    tmp_path: Path, format: Format, statuses: list[str]
) -> None:
    write_adapter(
        make("sd1", lambda name: "attn2" in name or ".ff." in name), tmp_path / "a.safetensors", format=format
    )
    assert [verdict.status for verdict in judged("sd1", tmp_path / "a.safetensors")] == statuses


ATTENTION = r"transformer\..*attn2?\.(to_|add_)|single_transformer_blocks\.\d+\.proj_(mlp|out)"


@pytest.mark.parametrize(
    ("base", "format", "statuses"),
    [
        ("flux", "auto", ["all", "all", "unknown", "all"]),
        ("flux", "kohya", ["all", "all", "unknown", "all"]),
        ("flux", "peft", ["refuses", "none", "unknown", "all"]),
        ("sd3", "auto", ["all", "all", "some", "unknown"]),
        ("sd3", "kohya", ["none", "all", "refuses", "unknown"]),
        ("sd3", "peft", ["none", "all", "none", "unknown"]),
        ("sd35_medium", "auto", ["all", "all", "unknown", "unknown"]),
    ],
)
def test_the_formats_of_transformers_differ_in_who_loads_them(
    tmp_path: Path, base: str, format: Format, statuses: list[str]
) -> None:
    write_adapter(
        make(base, lambda name: re.search(ATTENTION, name), scale=0.5), tmp_path / "a.safetensors", format=format
    )
    found = judged(base, tmp_path / "a.safetensors")
    assert [verdict.status for verdict in found] == statuses
    assert {verdict.ratios for verdict in found if verdict.status == "all"} == {(1.0,)}


def test_the_hint_names_the_format_that_loads_in_more_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter(make("flux", lambda name: re.search(ATTENTION, name)), tmp_path / "a.safetensors", format="peft")
    code, text = run(tmp_path / "a.safetensors", capsys)
    assert code == 1 and "--format kohya loads whole and at its strength in diffusers, ComfyUI, InvokeAI" in text
    write_adapter(make("sd3", lambda name: re.search(ATTENTION, name)), tmp_path / "b.safetensors")
    code, text = run(tmp_path / "b.safetensors", capsys)
    assert code == 1 and "hint: no format that draft convert writes loads in more of them" in text


def test_comfyui_drops_the_attention_of_what_diffusers_saves_for_stable_diffusion_and_loads_the_rest() -> None:
    found = verdicts("sd1", contents("sd1", {name: (name,) for name in (Q, K, FF)}, pair=PEFT))["ComfyUI"]
    assert (found.status, found.loaded, set(found.dropped)) == ("some", 1, {Q, K})
    assert sentence(found) == f"loads 1 of 3 modules; drops {Q} and 1 more"


@pytest.mark.parametrize(
    ("base", "prefix", "expected"),
    [
        ("sd3", "transformer.", "all"),
        ("sd3", "base_model.model.", "all"),
        ("flux", "transformer.", "all"),
        ("flux", "base_model.model.", "none"),
    ],
)
def test_comfyui_loads_transformers_under_diffusers_names(base: str, prefix: str, expected: str) -> None:
    paths = [name.removeprefix("transformer.") for name in BASES[base].modules if name.startswith("transformer.")]
    file = contents(base, {prefix + path: (f"transformer.{path}",) for path in paths}, pair=PEFT)
    assert statuses(base, file)["ComfyUI"] == expected


def test_a_header_s_alpha_is_read_by_diffusers_alone() -> None:
    header = {"unet.lora_alpha": 8, "unet.r": 4}
    names = {name: (name,) for name in (Q, K, FF)}
    found = verdicts("sd1", contents("sd1", names, pair=PEFT, header=header))
    assert found["diffusers"].right
    assert found["ComfyUI"].ratios == (0.5,) and not found["ComfyUI"].right
    assert "at 0.5 times its strength" in sentence(found["ComfyUI"])


def test_alpha_tensors_under_diffusers_names_are_read_by_comfyui_and_make_diffusers_refuse() -> None:
    names = {name: (name,) for name in (FF,)}
    found = verdicts("sd1", contents("sd1", names, pair=PEFT, alpha=2.0))
    assert found["ComfyUI"].right and found["diffusers"].status == "refuses"
    found = verdicts("flux", contents("flux", _flux_names("transformer."), pair=PEFT, alpha=2.0))
    assert found["ComfyUI"].right and found["diffusers"].right and found["InvokeAI"].status == "refuses"


def test_kohya_names_with_alpha_are_right_everywhere() -> None:
    file = contents("sd1", {kohya(name): (name,) for name in (Q, K, FF, MLP)}, alpha=1.0)
    assert all(verdict.right for verdict in verdicts("sd1", file).values())


def test_diffusers_loses_the_alphas_of_attention_where_they_differ() -> None:
    names = {kohya(name): (name,) for name in (Q, K, FF)}
    alpha = {kohya(Q): 8.0, kohya(K): 4.0, kohya(FF): 4.0}
    found = verdicts("sd1", contents("sd1", names, rank={n: int(a) for n, a in alpha.items()}, alpha=alpha))
    assert found["diffusers"].ratios == (0.5, 1.0) and found["A1111"].right and found["ComfyUI"].right


def test_invokeai_takes_only_kohya_s_prefixes_for_sdxl_and_needs_a_name_that_tells_the_model() -> None:
    deep = "unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q"
    first = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert statuses("sdxl", contents("sdxl", {kohya(deep): (deep,)}))["InvokeAI"] == "all"
    assert statuses("sdxl", contents("sdxl", {kohya(first): (first,)}))["InvokeAI"] == "refuses"
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1": (MLP,)}
    found = verdicts("sdxl", contents("sdxl", {kohya(deep): (deep,), **text}))["InvokeAI"]
    assert found.reason.startswith("unrecognized SDXL LoRA key prefix")


def test_invokeai_takes_a_file_for_another_model_by_its_width() -> None:
    time = "unet.down_blocks.0.resnets.0.time_emb_proj"
    found = verdicts("sd1", contents("sd1", {kohya(time): (time,)}))["InvokeAI"]
    assert (found.status, found.reason) == ("refuses", "it takes the file for another base model (sdxl)")


def _flux_names(prefix: str) -> dict[str, tuple[str, ...]]:
    blocks = ["transformer_blocks.0.attn." + end for end in ("to_q", "to_k", "to_v", "to_out.0")]
    blocks += ["transformer_blocks.0.attn." + end for end in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")]
    blocks += ["single_transformer_blocks.0." + end for end in ("attn.to_q", "proj_mlp", "proj_out")]
    return {prefix + path: (f"transformer.{path}",) for path in blocks}


def test_invokeai_s_detector_of_flux_needs_both_kinds_of_blocks() -> None:
    names = _flux_names("transformer.")
    assert statuses("flux", contents("flux", names, pair=PEFT)) == {
        "diffusers": "all",
        "ComfyUI": "all",
        "A1111": "unknown",
        "InvokeAI": "all",
    }
    without = {name: modules for name, modules in names.items() if "single" not in name}
    found = verdicts("flux", contents("flux", without, pair=PEFT))["InvokeAI"]
    assert found.status == "refuses" and "detectors" in found.reason
    gap = {name: modules for name, modules in names.items() if "transformer_blocks.0.attn.to_k" not in name}
    assert "only together" in verdicts("flux", contents("flux", gap, pair=PEFT))["InvokeAI"].reason
    more = {**names, "transformer.norm_out.linear": ("transformer.norm_out.linear",)}
    assert "stops at names" in verdicts("flux", contents("flux", more, pair=PEFT))["InvokeAI"].reason


def test_onetrainer_s_names_of_flux_load_but_for_what_its_readers_stop_at() -> None:
    ends = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
    paths = [f"transformer_blocks.0.{end}" for end in ends]
    names = {f"lora_transformer_{path.replace('.', '_')}": (f"transformer.{path}",) for path in paths}
    found = verdicts("flux", contents("flux", names, alpha=1.0))
    assert all(found[tool].right for tool in ("diffusers", "ComfyUI", "InvokeAI"))
    more = {
        **names,
        "lora_transformer_transformer_blocks_0_ff_context_net_2": (
            "transformer.transformer_blocks.0.ff_context.net.2",
        ),
    }
    assert statuses("flux", contents("flux", more, alpha=1.0)) == {
        "diffusers": "refuses",
        "ComfyUI": "all",
        "A1111": "unknown",
        "InvokeAI": "refuses",
    }


def test_fused_kohya_names_of_flux_load_as_one_module_for_several() -> None:
    qkv = tuple(f"transformer.transformer_blocks.0.attn.to_{each}" for each in "qkv")
    single = tuple(f"transformer.single_transformer_blocks.0.attn.to_{each}" for each in "qkv")
    names = {
        "lora_unet_double_blocks_0_img_attn_qkv": qkv,
        "lora_unet_single_blocks_0_linear1": (*single, "transformer.single_transformer_blocks.0.proj_mlp"),
    }
    found = verdicts("flux", contents("flux", names, alpha=1.0))
    assert {name: verdict.right for name, verdict in found.items() if name != "A1111"} == {
        "diffusers": True,
        "ComfyUI": True,
        "InvokeAI": True,
    }
    embedder = {**names, "lora_unet_txt_in": ("transformer.context_embedder",)}
    found = verdicts("flux", contents("flux", embedder, alpha=1.0))
    assert found["diffusers"].dropped == ("lora_unet_txt_in",)
    assert found["InvokeAI"].status == "refuses"


def test_a1111_takes_the_attention_of_openclip_only_whole() -> None:
    layer = "text_encoder_2.text_model.encoder.layers.0.self_attn"
    names = [f"{layer}.{end}" for end in ("q_proj", "k_proj", "v_proj", "out_proj")]
    whole = contents("sdxl", {kohya(name): (name,) for name in names})
    part = contents("sdxl", {kohya(name): (name,) for name in names[:2]})
    assert statuses("sdxl", whole)["A1111"] == "all"
    assert statuses("sdxl", part)["A1111"] == "none"


def test_a1111_does_not_reach_one_upsampler_of_sdxl_under_diffusers_name() -> None:
    name = "unet.up_blocks.0.upsamplers.0.conv"
    assert statuses("sdxl", contents("sdxl", {kohya(name): (name,)}))["A1111"] == "none"
    assert statuses("sdxl", contents("sdxl", {"lora_unet_output_blocks_2_2_conv": (name,)}))["A1111"] == "all"


def test_a1111_knows_of_sd3_the_image_s_half_of_attention() -> None:
    ends = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")
    names = {f"transformer.transformer_blocks.0.attn.{end}": () for end in ends}
    found = verdicts("sd3", contents("sd3", {name: (name,) for name in names}, pair=PEFT))["A1111"]
    assert [name.rpartition(".")[2] for name in found.dropped] == ["add_q_proj", "to_add_out"]
    assert verdicts("sd35_large", contents("sd35_large", {name: (name,) for name in names}, pair=PEFT))[
        "A1111"
    ].reason == ("has no LoRA for Stable Diffusion 3.5 large")


def test_diffusers_cannot_tell_a_text_encoder_s_layout_from_queries_alone_under_kohya_names() -> None:
    out = TE.replace("q_proj", "out_proj")
    alone = contents("sd1", {kohya(name): (name,) for name in (Q, TE)})
    mixed = contents("sd1", {kohya(name): (name,) for name in (Q, TE, MLP)})
    whole = contents("sd1", {kohya(name): (name,) for name in (Q, TE, out, MLP)})
    assert statuses("sd1", alone)["diffusers"] == "refuses"
    assert verdicts("sd1", mixed)["diffusers"].dropped == (kohya(TE),)
    assert statuses("sd1", whole)["diffusers"] == "all"


def test_modules_that_the_base_model_does_not_have_are_named(tmp_path: Path) -> None:
    adapter = make("sd1", lambda name: "attn2" in name)
    odd = "unet.down_blocks.0.attentions.7.transformer_blocks.0.attn2.to_q"
    write_adapter(Adapter({**adapter.modules, odd: adapter.modules[Q]}, "sd"), tmp_path / "a.safetensors")
    found = verify(tmp_path / "a.safetensors")
    assert found.strange == (odd,) and not found.right
    assert {verdict.status for verdict in found.verdicts} == {"some"}


def test_a_file_for_an_unknown_model_is_not_judged(tmp_path: Path) -> None:
    factors = Factors(torch.ones(1, 7), torch.ones(5, 1))
    write_adapter(Adapter({Q: factors, K: factors}), tmp_path / "a.safetensors")
    found = verify(tmp_path / "a.safetensors")
    assert not found.known and not found.right and found.verdicts == ()


def test_a_hash_in_the_header_is_held_against_the_tensors(tmp_path: Path) -> None:
    write_adapter(make("sd1", lambda name: "attn2" in name), tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    digest = hashlib.sha256(data[read_header(tmp_path / "a.safetensors").size :]).hexdigest()
    for told, expected in ((f"0x{digest}", True), ("0x" + "0" * 64, False)):
        tensors = _tensors(tmp_path / "a.safetensors")
        write_tensors(tensors, tmp_path / "b.safetensors", metadata={"modelspec.hash_sha256": told})
        found = verify(tmp_path / "b.safetensors")
        assert found.hashes == {"modelspec.hash_sha256": expected} and found.right == expected


def _tensors(path: Path) -> dict[str, Tensor]:
    from draft.adapters.files.container import read_tensors

    return read_tensors(path)[0]


def run(path: Path, capsys: pytest.CaptureFixture[str], *, json: bool = False) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as stop:
        command(path, json=json)
    return stop.value.exit_code, capsys.readouterr().out


def test_the_exit_code_says_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make("sd1", lambda name: "attn2" in name)
    recipe = {"kind": "mix", "inputs": [{"name": "compress", "sha256": "ab" * 32, "weight": 0.7}]}
    write_adapter(adapter, tmp_path / "good.safetensors", metadata={"draft.recipe": json.dumps(recipe)})
    write_adapter(adapter, tmp_path / "bad.safetensors", format="diffusers")
    factors = Factors(torch.ones(1, 7), torch.ones(5, 1))
    write_adapter(Adapter({Q: factors}), tmp_path / "odd.safetensors")
    code, text = run(tmp_path / "good.safetensors", capsys)
    assert code == 0 and "loads all 64 modules" in text and f"compress sha256 {'ab' * 32}, weight 0.7" in text
    assert "hint" not in text
    code, text = run(tmp_path / "bad.safetensors", capsys)
    assert code == 1 and "InvokeAI 6.14.0   refuses it" in text and "hint: draft convert" in text
    code, text = run(tmp_path / "odd.safetensors", capsys, json=True)
    assert code == 3 and json.loads(text)["model"] is None and json.loads(text)["right"] is None


def test_the_command_leaves_with_the_code_and_two_for_a_broken_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    write_adapter(make("sd1", lambda name: "attn2" in name), tmp_path / "a.safetensors", format="diffusers")
    for name, code in (("broken", 2), ("a", 1)):
        monkeypatch.setattr(sys, "argv", ["draft", "verify", str(tmp_path / f"{name}.safetensors")])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == code
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and "ComfyUI" in told.out
