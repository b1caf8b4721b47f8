"""What holds for all tests: no hub, no plugins of the developer's own, one thread where a test needs no more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Before any library reads them. A test that needs the network would be a test that fails on a train.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("DRAFT_PLUGINS", None)
os.environ["MPLBACKEND"] = "agg"
# What a test makes again is nobody's own; the folder goes with the process.
_CACHE = tempfile.TemporaryDirectory(prefix="draft-cache-")
os.environ["DRAFT_CACHE"] = _CACHE.name
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Workers that each take all cores wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """What a test or the command it runs in this process writes into the environment does not reach the next test."""
    before = dict(os.environ)
    offline = getattr(sys.modules.get("huggingface_hub.constants"), "HF_HUB_OFFLINE", None)
    yield
    for name in set(os.environ) | set(before):
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    if offline is not None:
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = offline  # type: ignore[attr-defined]


def pytest_report_header() -> str:
    """The versions that decide what a number comes out as."""
    names = ("torch", "diffusers", "transformers", "peft", "pydantic", "omegaconf")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


@pytest.fixture(scope="session")
def pip() -> list[str]:
    """The command of pip: the installed one, or the one that Python carries along, as uv's environments have none."""
    # Not by looking for the module: setuptools takes that for a run of pip, and torch.compile then fails.
    if any(importlib.metadata.distributions(name="pip")):
        return [sys.executable, "-m", "pip"]
    ensurepip = pytest.importorskip("ensurepip", reason="there is neither pip nor the one that Python carries along")
    (wheel,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    return [sys.executable, str(wheel / "pip")]


@pytest.fixture(scope="session")
def load_module() -> Callable[[Path], ModuleType]:
    """Loads a file beside the tests: their folders are no packages, so nothing in them can be imported by name."""

    def load_module(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load_module


@pytest.fixture(scope="session")
def tiny_module(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module `tiny.py`."""
    return load_module(Path(__file__).with_name("tiny.py"))


@pytest.fixture(scope="session")
def tiny_model(tiny_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    return tiny_module.save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
