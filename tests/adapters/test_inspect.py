"""`draft inspect`: what it measures, and what it shows of a header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.container import write_tensors
from draft.adapters.files.formats import Format, write_adapter
from draft.adapters.inspect import file_format, inspect_adapter, rank_of_energy, spectrum, tag_counts
from draft.errors import StageError
from draft_cli.inspect import inspect, one_line

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
MID = "unet.mid_block.resnets.0.conv1"
TE = "text_encoder.text_model.encoder.layers.3.self_attn.q_proj"


def factors(seed: int, rank: int, *, conv: bool = False, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *((4, 3, 3) if conv else (8,)), generator=generator)
    return Factors(down, torch.randn(6, rank, *([1, 1] if conv else []), generator=generator), scale)


ADAPTER = Adapter({Q: factors(1, 3), MID: factors(2, 2, conv=True, scale=0.5), TE: factors(3, 3, scale=2.0)})


@given(rank=st.integers(1, 7), conv=st.booleans(), scale=st.floats(-2, 2), seed=st.integers(0, 500))
def test_the_singular_values_are_those_of_the_dense_change(rank: int, conv: bool, scale: float, seed: int) -> None:
    module = factors(seed, rank, conv=conv, scale=scale)
    dense = module.up.double().flatten(1) @ module.down.double().flatten(1) * scale
    wanted = torch.linalg.svdvals(dense)
    found = spectrum(module)
    torch.testing.assert_close(found, wanted[: len(found)], rtol=1e-9, atol=1e-9)
    assert float(wanted[len(found) :].sum()) < 1e-9


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [([3.0, 1.0], 0.9, 1), ([3.0, 1.0], 0.91, 2), ([1.0, 1.0, 1.0], 1.0, 3), ([0.0], 0.9, 0)],
)
def test_the_rank_of_an_energy_is_the_smallest_that_keeps_it(values: list[float], share: float, rank: int) -> None:
    assert rank_of_energy(torch.tensor(values, dtype=torch.float64), share) == rank


def test_a_file_is_counted_and_measured(tmp_path: Path) -> None:
    write_adapter(ADAPTER, tmp_path / "a.safetensors", format="diffusers")
    found = inspect_adapter(tmp_path / "a.safetensors")
    facts = found.facts
    assert (found.family, facts.format, facts.dtypes) == ("sd", "diffusers", {"F32": 6})
    assert facts.parts == {"text_encoder": 1, "unet": 2}
    assert facts.ranks == {2: 1, 3: 2} and facts.alphas == {2: 1, 3: 2}
    dense = [f.up.double().flatten(1) @ f.down.double().flatten(1) * f.scale for f in ADAPTER.modules.values()]
    assert found.norm == pytest.approx(float(torch.cat([each.flatten() for each in dense]).norm()), rel=1e-6)
    assert [block.name for block in found.groups] == ["text_encoder", "unet.down_blocks", "unet.mid_block"]
    assert [block.name for block in found.blocks] == ["text_encoder.layers.3", "unet.down_blocks.1", "unet.mid_block"]
    assert facts.digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()


def test_alphas_are_those_the_file_means(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(4, 8),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(6, 4),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0),
    }
    write_tensors(tensors, tmp_path / "a.safetensors", metadata={})
    assert inspect_adapter(tmp_path / "a.safetensors").facts.alphas == {1.0: 1}


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
def test_the_format_is_told_by_the_names(tmp_path: Path, format: Format) -> None:
    write_adapter(Adapter({Q: factors(1, 3)}), tmp_path / "a.safetensors", format=format)
    assert inspect_adapter(tmp_path / "a.safetensors").facts.format == format


def test_other_formats_are_told_too() -> None:
    assert file_format({"unet.a.processor.to_q_lora.up.weight": 0}) == "older diffusers"
    assert file_format({"diffusion_model.a.lora_A.weight": 0}) == "original code"
    assert file_format({"lora_unet_a.lora_up.weight": 0, "unet.b.lora_A.weight": 0}) == "mixed"


def test_a_peft_folder_is_inspected_like_a_file(tmp_path: Path) -> None:
    write_adapter(Adapter({Q: factors(1, 3)}), tmp_path / "folder", format="peft")
    found = inspect_adapter(tmp_path / "folder")
    assert found.facts.format == "peft" and found.facts.ranks == {3: 1}


def test_captions_are_counted_over_folders_and_nonsense_is_left_out() -> None:
    counts = {"10_cat": {"cat": 3, " sofa": 1}, "5_dog": {"cat": 1, "dog": 2}, "odd": 3}
    assert list(tag_counts({"ss_tag_frequency": json.dumps(counts)}).items()) == [("cat", 4), ("dog", 2), ("sofa", 1)]
    assert tag_counts({"ss_tag_frequency": "{"}) == {} == tag_counts({})


METADATA = {
    "modelspec.trigger_phrase": "sks",
    "ss_base_model_version": "sd_v1",
    "ss_tag_frequency": json.dumps({"a": {f"tag{i}": 20 - i for i in range(10)}}),
    "draft.recipe": json.dumps({"kind": "mix", "inputs": [{"name": "a", "weight": 0.7, "sha256": "0"}]}),
    "draft.evaluation": json.dumps(
        {
            "model": "sd",
            "weight": 1.0,
            "rewards": {
                "aesthetic": {"gain": {"mean": 0.5, "low": 0.25, "high": 0.75, "count": 64}},
                "broken": {"gain": {"mean": None}},
            },
        }
    ),
}


def test_the_command_shows_what_the_header_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter(ADAPTER, tmp_path / "a.safetensors", format="diffusers", metadata=METADATA)
    inspect(tmp_path / "a.safetensors")
    text = capsys.readouterr().out
    assert "trigger words  sks" in text and "tag0 (20), tag1 (19)" in text and "2 more" in text
    assert "mix of 0.7 x a" in text and "+0.5 (95% +0.25 to +0.75, 64 prompts)" in text and "broken" not in text
    assert "rank     2 (1), 3 (2)" in text
    assert len(text.splitlines()) < 35
    inspect(tmp_path / "a.safetensors", blocks=True)
    assert "unet.down_blocks.1 " in capsys.readouterr().out
    inspect(tmp_path / "a.safetensors", json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["ranks"] == {"2": 1, "3": 2} and told["evaluation"]["model"] == "sd"
    assert told["metadata"]["modelspec.trigger_phrase"] == "sks"


def test_a_header_cannot_steer_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\n\tc") == "a[2Jb c"
    assert len(one_line("x" * 500)) == 160


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(StageError, match="safetensors"):
        inspect_adapter(tmp_path / "a.safetensors")
