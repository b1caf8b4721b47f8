"""What a process of its own costs a reward: the same score and gradient here and there, then seconds per call.

    OMP_NUM_THREADS=1 python benchmarks/isolated.py

It isolates rewards of this very environment, so that nothing differs but the process. The run first asserts that scores
and gradients are equal; then both take turns, so that other work on the machine slows both, and medians are shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from draft.isolation.reward import ending_processes, isolated_reward
from draft.isolation.settings import Isolation
from draft.rewards.reward import Score, Term
from draft.rewards.terms import build_reward

CPU = torch.device("cpu")
REWARDS = {"jpeg": {"quality": 50}, "clip_score": {"model": "emoji/clip"}}


def gradient(score: Score, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Scores and the gradient of their sum, as a training asks for them."""
    pixels = images.clone().requires_grad_()
    scores = score(pixels, prompts)
    (slope,) = torch.autograd.grad(scores.sum(), pixels)
    return scores.detach(), slope


def milliseconds(score: Score, images: Tensor, prompts: list[str]) -> float:
    """How long one call with its gradient takes."""
    began = time.perf_counter()
    gradient(score, images, prompts)
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Print one row per reward and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512], help="sides of the images in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--calls", type=int, default=21, help="calls of each kind")
    arguments = parser.parse_args()
    isolation = Isolation(python=str(Path(sys.executable)))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {arguments.batch}, "
        f"medians of {arguments.calls}"
    )
    print("| reward | size | here, ms | isolated, ms | difference, ms | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for name, options in REWARDS.items():
        reward = isolated_reward(isolation, name, options, where=name)
        with ending_processes([Term(name, reward)]):
            began = time.perf_counter()
            scores = [build_reward(name, options).load(CPU), reward.load(CPU)]
            loading = time.perf_counter() - began
            for size in arguments.sizes:
                generator = torch.Generator().manual_seed(size)
                images = torch.rand(arguments.batch, 3, size, size, generator=generator)
                prompts = ["a cat on a blue background"] * arguments.batch
                results = [gradient(score, images, prompts) for score in scores]
                for direct, isolated in zip(*results, strict=True):
                    assert torch.equal(direct, isolated), f"{name} at {size} px differs"
                times = [[milliseconds(score, images, prompts) for score in scores] for _ in range(arguments.calls)]
                direct, isolated = map(median, zip(*times, strict=True))
                row = f"{direct:.1f} | {isolated:.1f} | {isolated - direct:.1f} | {isolated / direct:.2f}"
                print(f"| `{name}` | {size} | {row} |", flush=True)
        print(f"loading `{name}` in both took {loading:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
