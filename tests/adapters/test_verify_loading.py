"""What `draft verify` says of diffusers, held against diffusers' own pipelines on files of every layout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import FluxPipeline
from safetensors.torch import save_file

from draft.adapters.factors import Factors
from draft.adapters.files.formats import read_changes
from draft.adapters.verification.contents import contents_of
from draft.adapters.verification.tools import as_of, release, tools
from draft.adapters.verification.verdict import judge
from draft.errors import StageError


def module(name: str) -> ModuleType:
    """A file beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


INSTALLED = as_of(tools()[0], diffusers.__version__, beside=f"transformers {release(transformers.__version__)[0]}")
edits, loading = module("loading_edits"), module("loading")


def told(row: Any, path: Path) -> tuple[str, set[str]]:
    """What verify says that the installed release does, in the words of `loading.outcome`."""
    changes = read_changes(path, dora=True)
    verdict = judge(INSTALLED, loading.base_of(row.base), contents_of(path, changes))
    if verdict.status in ("none", "refuses"):
        return verdict.status, set()
    magnitudes = " with magnitudes" if row.edit == ["magnitudes"] and not verdict.ignored else ""
    strengths = sorted(f"{ratio:.3g}{magnitudes}" for ratio in verdict.ratios)
    dropped = {module for name in verdict.dropped for module in loading.modules_of(row)[name]}
    return " ".join([verdict.status, *strengths]), changes.modules.keys() - dropped


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{row.base}-{row.row}", marks=[pytest.mark.slow] if row.slow else [])
        for row in loading.rows()
    ],
)
def test_diffusers_does_with_a_file_what_verify_says(row: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    loading.write(row, file)
    if row.outcome == "unreadable":
        assert loading.outcome(row.base, file, None)[0] == "refuses"
        with pytest.raises(StageError):
            read_changes(file)
        return
    older = [text for version, text in row.before.items() if release(diffusers.__version__) < release(version)]
    outcome = loading.outcome(row.base, file, read_changes(file, dora=True))
    # Text encoders are not found by releases before 0.41 beside transformers 5, of which the table says nothing.
    if INSTALLED.beside != "transformers 5":
        assert outcome[0] == (older[0] if older else row.outcome)
    elif row.header:
        return
    assert told(row, file) == outcome


def test_the_table_has_forty_layouts_in_the_quick_tests_and_both_kinds_of_outcomes() -> None:
    quick = [row for row in loading.rows() if not row.slow]
    assert len(quick) >= 40
    assert {row.outcome.split()[0] for row in quick} == {"all", "some", "none", "refuses", "unreadable"}


@pytest.mark.parametrize("rank", [2, 4])
def test_a_fused_layer_of_flux_at_its_real_width_comes_apart_as_it_does_here(rank: int, tmp_path: Path) -> None:
    # diffusers' converter knows the layer by its 21504 rows, and by blocks of zeros at a rank that four divides.
    name, sizes = "lora_unet_single_blocks_0_linear1", (3072, 3072, 3072, 12288)
    up = torch.randn(sum(sizes), rank, generator=torch.Generator().manual_seed(1))
    if rank == len(sizes):
        up *= torch.block_diag(*[torch.ones(size, 1) for size in sizes])
    factors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": torch.randn(rank, 3072)}
    save_file({**factors, f"{name}.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    changes = read_changes(tmp_path / "a.safetensors").modules
    converted: Any = FluxPipeline.lora_state_dict(str(tmp_path), weight_name="a.safetensors")
    assert len(changes) == len(sizes)
    inputs = torch.randn(3072, 3)
    for module, change in changes.items():
        assert isinstance(change, Factors)
        loaded = converted[f"{module}.lora_B.weight"] @ (converted[f"{module}.lora_A.weight"] @ inputs)
        torch.testing.assert_close(loaded, change.up @ (change.down @ inputs) * change.scale, rtol=1e-3, atol=1e-2)
