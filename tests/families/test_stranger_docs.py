"""The example of a family is what its page says, and is built of what the page calls public."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "plugins" / "example_family"
PIPELINE = """
name: one
stages:
  train:
    kind: train
    model: pocket_flow
    prompts: [a cat]
    max_steps: 1
    batch_size: 1
    sampler: {num_inference_steps: 2}
    method: {kind: draft_k, k: 1}
    rewards: {symmetry: null}
"""


def test_the_row_on_the_page_is_the_examples(stranger: ModuleType) -> None:
    (block,) = (text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def draft_families" in text)
    namespace: dict[str, object] = {}
    exec("import draft\n" + block, namespace)
    assert namespace["draft_families"]() == [stranger.FAMILY]  # type: ignore[operator]
    assert dict(namespace["draft_families"]()[0].components) == stranger.FAMILY.components  # type: ignore[operator]


def test_the_row_costs_no_torch() -> None:
    code = "import sys, draft_pocket_flow; draft_pocket_flow.draft_families(); draft_pocket_flow.draft_models()"
    code += "; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=EXAMPLE, check=True, timeout=120)


def test_it_imports_only_what_the_page_calls_public() -> None:
    public = PAGE.partition("What is public for a family:")[2].partition("A family that builds on")[0]
    names = set(re.findall(r"`(draft[\w.]*)`", public))
    assert {"draft", "draft.types", "draft.diffusion.lora.adapters_kept"} <= names
    imported = set()
    for file in EXAMPLE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    imported = {name for name in imported if name.partition(".")[0] == "draft"}
    assert imported and all(name in names or name.rpartition(".")[0] in names for name in imported), imported
    assert not any("diffusers" in file.read_text(encoding="utf-8") for file in EXAMPLE.rglob("*.py"))


def test_every_part_of_the_protocol_is_on_the_page_and_in_the_example(stranger: ModuleType) -> None:
    from draft.diffusion.families import TextToImage

    parts = {name for name in vars(TextToImage) if not name.startswith("_")} | set(TextToImage.__annotations__)
    rows = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    assert parts <= rows
    source = (EXAMPLE / "draft_pocket_flow" / "model.py").read_text(encoding="utf-8")
    assert all(re.search(rf"\b{part}\b", source) for part in parts)


@pytest.mark.slow
def test_the_package_is_installed_by_pip_and_its_model_trained(tmp_path: Path, pip: list[str]) -> None:
    pytest.importorskip("hatchling")
    source = shutil.copytree(EXAMPLE, tmp_path / "source")
    install = [*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([*install, str(tmp_path / "site"), str(source)], check=True, timeout=300)
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    (tmp_path / "one.yaml").write_text(
        PIPELINE,
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": paths, "DRAFT_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-m", "draft", "run", "one.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "one" / "train" / "adapter.safetensors").exists()
