"""What holds for all tests: no hub, no plugins of the developer's own, one thread where a test needs no more."""

from __future__ import annotations

import importlib.metadata
import os

# Before any library reads them. A test that needs the network would be a test that fails on a train.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("DRAFT_PLUGINS", None)
os.environ["MPLBACKEND"] = "agg"
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Workers that each take all cores wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_report_header() -> str:
    """The versions that decide what a number comes out as."""
    names = ("torch", "diffusers", "transformers", "peft", "kornia", "pydantic", "omegaconf")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
