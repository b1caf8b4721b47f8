"""Draft: teach a diffusion model what you like, by backpropagating rewards through sampling into LoRA weights.

This is the public face; a plugin needs nothing but ``import draft``. Importing it costs no torch.

Example:
    >>> import torch, draft
    >>> score = draft.load("jpeg", quality=50)
    >>> score(torch.rand(2, 3, 64, 64), ["", ""]).shape
    torch.Size([2])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from draft.errors import DraftError
from draft.family import Family
from draft.quiet import drop_torchvision_lines
from draft.rewards.extensions import model_path
from draft.rewards.hookspecs import NamedModel, hookimpl
from draft.rewards.networks import frozen_network
from draft.rewards.reward import Reward, Score
from draft.types import Prompts, per_prompt

__all__ = [
    "DraftError",
    "Family",
    "Field",
    "NamedModel",
    "Prompts",
    "Reward",
    "Score",
    "frozen_network",
    "hookimpl",
    "load",
    "model_path",
    "per_prompt",
    "run",
]

drop_torchvision_lines()


def load(name: str, device: str = "cpu", **options: Any) -> Score:
    """Load an installed reward and return its scoring function.

    Args:
        name: The reward's name, as `draft rewards list` shows it; ``"distribution:name"`` where two share it.
        device: Where the images will be, e.g. ``"cpu"`` or ``"cuda:0"``.
        **options: The reward's own parameters, as `draft rewards show NAME` lists them.

    Returns:
        A function of images, float (B, 3, H, W) in [0, 1], and B prompts that returns B scores; anything else that it
        is given is an error.

    Example:
        >>> import draft
        >>> compressible = draft.load("jpeg", quality=50)
    """
    from draft.rewards.calls import load_reward, protected
    from draft.rewards.inputs import guarded
    from draft.rewards.parts import called
    from draft.rewards.terms import build_reward

    reward = build_reward(name, options, where=name)
    import torch

    place, who = torch.device(device), called(name, reward)
    return guarded(protected(load_reward(reward, place, who), who, place), where=name)


def run(file: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Run a pipeline file, as `draft run` does.

    Args:
        file: The pipeline's YAML file, or the name of one that ships with Draft.
        overrides: Changes to the file as full dotted keys, e.g. ``["stages.train.max_steps=20"]``.

    Returns:
        What `draft.pipeline.run.run_pipeline` returns.
    """
    from draft.pipeline.run import run_pipeline

    return run_pipeline(file, overrides)


def __getattr__(name: str) -> str:
    # Reading the version takes a look into the metadata, so it waits until somebody asks.
    if name == "__version__":
        from importlib.metadata import version

        return version("draft-diffusion")
    raise AttributeError(f"module 'draft' has no attribute {name!r}")
