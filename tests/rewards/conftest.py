"""One set of tiny networks for all tests of this folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _module(name: str) -> ModuleType:
    # These folders are no packages, so nothing in them can be imported by name.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny.py`."""
    return _module("tiny")


@pytest.fixture(scope="session")
def tiny_blip() -> ModuleType:
    """The module `tiny_blip.py`."""
    return _module("tiny_blip")


@pytest.fixture(scope="session")
def tiny_clip(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session", params=["OwlViT", "Owlv2"])
def tiny_owl(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_owl(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session", params=["ResNet", "ConvNext", "ViT"])
def tiny_classifier(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_classifier(tmp_path_factory.mktemp(request.param), request.param)
