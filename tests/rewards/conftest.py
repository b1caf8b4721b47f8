"""One set of tiny networks for all tests of this folder, and the recordings that more than one file reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
Load = Callable[[Path], ModuleType]


@pytest.fixture(scope="session")
def tiny(load_module: Load) -> ModuleType:
    """The module `tiny.py`."""
    return load_module(HERE / "tiny.py")


@pytest.fixture(scope="session")
def tiny_blip(load_module: Load) -> ModuleType:
    """The module `tiny_blip.py`."""
    return load_module(HERE / "tiny_blip.py")


@pytest.fixture(scope="session")
def tiny_clip(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session", params=["OwlViT", "Owlv2"])
def tiny_owl(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_owl(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session", params=["ResNet", "ConvNext", "ViT"])
def tiny_classifier(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_classifier(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def hpsv2_recorded() -> dict[str, Any]:
    """What the published package `hpsv2` said of `hpsv2_small`'s model."""
    return json.loads((GOLDEN / "hpsv2.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def hpsv2_small(load_module: Load) -> ModuleType:
    """The module `golden/hpsv2_small.py`: a small model of ViT-H-14's architecture, and its pictures."""
    return load_module(GOLDEN / "hpsv2_small.py")
