"""A stranger's package: `draft rewards new`, a network with weights, a wheel, an empty environment, a training."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import draft
from draft.isolation.environment import interpreter

PACKAGE = '''
"""The reward `stranger`: a small network with weights of its own."""

from pathlib import Path

import draft

from draft_reward_stranger.network import tint

WEIGHTS = Path(__file__).with_name("weights.safetensors")


class Stranger(draft.Reward):
    """How far an image goes in a colour's direction."""

    name = "stranger"
    api_version = 1

    target: str = draft.Field("281", description="a class, or a column of the prompt file as '{column}'")

    def load(self, device):
        from safetensors.torch import load_file

        direction = load_file(WEIGHTS)["direction"].to(device)

        def score(images, prompts):
            assert draft.per_prompt(self.target, prompts) == ["7"] * len(prompts)
            return tint(images, direction)

        return score


@draft.hookimpl
def draft_rewards():
    return [Stranger]
'''
NETWORK = '''
"""A second module."""


def tint(images, direction):
    return (images.mean(dim=(2, 3)) * direction.to(images.dtype)).sum(dim=1)
'''
PIPELINE = """
name: published
stages:
  train:
    kind: train
    model: emoji
    prompts: [a cat]
    max_steps: 2
    batch_size: 1
    method: {kind: draft_k, k: 1}
    sampler: {num_inference_steps: 2}
    rewards:
      stranger: {target: 7}
"""


def empty_environment(folder: Path) -> Path:
    """An environment with nothing in it but a way to Draft and its dependencies, as no network is needed for those."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    sources = {str(Path(module.__file__ or "").parents[1]) for module in (draft, *map(__import__, ALSO))}
    (packages / "borrowed.pth").write_text("\n".join([*site.getsitepackages(), *sorted(sources)]) + "\n")
    return packages


ALSO = ("draft_cli", "draft_rewards", "draft_emoji")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the layout of the environment is that of POSIX systems")
def test_a_strangers_package_with_weights_trains_from_its_wheel_in_an_empty_environment(
    command: Any, folder: Path, pip: list[str]
) -> None:
    assert command("rewards", "new", "stranger", "--author", "A. Stranger <a@example.org>")[0] == 0
    package = folder / "draft-reward-stranger"
    code = package / "draft_reward_stranger"
    (code / "__init__.py").write_text(PACKAGE, encoding="utf-8")
    (code / "network.py").write_text(NETWORK, encoding="utf-8")
    save_file({"direction": torch.tensor([1.0, 0.0, -1.0])}, code / "weights.safetensors")

    build = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder / "dist")]
    subprocess.run([*pip, *build, str(package)], check=True, timeout=300)
    (wheel,) = (folder / "dist").glob("*.whl")
    shutil.rmtree(package)
    packages = empty_environment(folder / "empty")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(packages), str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=300)

    python = str(interpreter(folder / "empty"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    (folder / "published.yaml").write_text(PIPELINE, encoding="utf-8")
    run = subprocess.run(
        [python, "-m", "draft", "run", "published.yaml"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    trained = folder / "runs" / "published" / "train"
    assert (trained / "adapter.safetensors").stat().st_size > 1000
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2
