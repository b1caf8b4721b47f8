"""`import draft`: the few names a script or a plugin needs."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import draft


def test_the_public_names_are_there() -> None:
    assert sorted(draft.__all__) == draft.__all__
    assert all(getattr(draft, name) is not None for name in draft.__all__)
    assert draft.__version__ == importlib.metadata.version("draft-diffusion")
    module: Any = draft
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_load_gives_the_scoring_function() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fine, coarse = draft.load("jpeg", quality=90), draft.load("jpeg", quality=10)
    assert (fine(images, ["", ""]) > coarse(images, ["", ""])).all()
    assert torch.equal(draft.load("draft-diffusion:jpeg", quality=90)(images, ["", ""]), fine(images, ["", ""]))


def test_load_refuses_wrong_names_and_options() -> None:
    with pytest.raises(draft.DraftError, match="unknown reward"):
        draft.load("jepg")
    with pytest.raises(draft.DraftError, match="must be at most 99"):
        draft.load("jpeg", quality=100)


def test_run_runs_a_pipeline_and_refuses_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(draft.DraftError):
        draft.run(tmp_path / "nothing.yaml")
