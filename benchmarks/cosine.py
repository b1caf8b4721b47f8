"""How near each method's gradient comes to full backpropagation, on the embedded model.

    OMP_NUM_THREADS=1 python benchmarks/cosine.py

A LoRA is trained for a few updates, so that B is not zero, and then stands still. For the same prompts and noise, the
gradient of every method is compared with that of `draft`: cosine over all LoRA weights, for single draws of a method,
for the mean of its draws on one batch, and for the mean over all draws and batches; and the ratio of the norms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median, pstdev

import torch
from torch import Tensor

from draft.diffusion.schedule import make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.methods.backpropagation import Backpropagation
from draft.methods.run import Batch
from draft.methods.values import (
    AlignProp,
    DirectAlign,
    Draft,
    DraftK,
    DraftLV,
    DRTune,
    FlowBPBridge,
    FlowBPLagrange,
    FlowBPSparse,
    LeapAlign,
    Method,
    ReFL,
)
from draft.progress import Silent
from draft.rewards.extensions import model_path
from draft.rewards.reward import Term
from draft.rewards.terms import build_reward
from draft.training.run import Run, prepare
from draft.training.settings import TrainSettings
from draft.types import Prompts

PROMPTS = (
    "a cat",
    "two dogs",
    "a red apple",
    "a house",
    "a tree and a car",
    "a fish",
    "a rocket",
    "a bird and a flower",
)
FROZEN = ("epsilon", "velocity")


def contenders(steps: int) -> Iterator[tuple[str, Method]]:
    """Every method that backpropagates, by the name of its row."""
    for k in (1, 2, 5):
        yield f"draft_k, K = {k}", DraftK(k=k)
    yield "draft_lv", DraftLV()
    yield "refl", ReFL(window=max(1, steps // 4))
    yield "alignprop", AlignProp()
    yield "direct_align", DirectAlign()
    yield "direct_align, both branches", DirectAlign(branches="both")
    for frozen in FROZEN:
        yield f"drtune, {frozen}", DRTune(frozen=frozen)
        yield f"leap_align, {frozen}", LeapAlign(frozen=frozen)
        yield f"flow_bp_sparse, {frozen}", FlowBPSparse(frozen=frozen)
        yield f"flow_bp_sparse, all steps, {frozen}", FlowBPSparse(k=steps, frozen=frozen)
        yield f"flow_bp_bridge, {frozen}", FlowBPBridge(frozen=frozen)
        yield f"flow_bp_bridge, all steps, alpha 1, {frozen}", FlowBPBridge(k=steps, alpha=1.0, frozen=frozen)
        yield f"flow_bp_lagrange, {frozen}", FlowBPLagrange(frozen=frozen)


@dataclass(frozen=True)
class Row:
    """A method's figures.

    Args:
        single: Cosine of each single draw to `draft` on the same batch.
        averaged: Cosine of the mean over a batch's draws to `draft` on that batch, one per batch.
        together: Cosine of the mean over everything to that of `draft`.
        ratio: Norm of each single draw over that of `draft`.
    """

    single: Sequence[float]
    averaged: Sequence[float]
    together: float
    ratio: Sequence[float]


def gradients(run: Run, batch: Batch, method: Method, draws: int) -> list[Tensor]:
    """The gradient of each of some draws on one batch, all LoRA weights in one vector."""
    vectors = []
    reuse = draws if method.traits.reuses_rollouts else 1
    drawing = replace(run, settings=replace(run.settings, method=method, rollout_reuse=reuse))
    for _ in range(draws // reuse):
        rule = Backpropagation(method, drawing)
        for surrogate in rule.surrogates(drawing, batch, []):
            run.optimizer.zero_grad(set_to_none=True)
            scored = run.scorer.loss_gradient(
                surrogate.latents, batch.prompts, loss=run.settings.loss, groups=surrogate.groups
            )
            surrogate.latents.backward(scored.gradient)
            vectors.append(torch.cat([p.grad.flatten() for p in run.parameters if p.grad is not None]))
            vectors[-1] = vectors[-1] / surrogate.latents.shape[0]
    return vectors


def cosine(left: Tensor, right: Tensor) -> float:
    """The cosine of two gradients."""
    return float(torch.cosine_similarity(left, right, dim=0))


def compare(run: Run, batches: Sequence[Batch], draws: int) -> tuple[dict[str, Row], list[float]]:
    """Every method's row, and the cosines of `draft` between batches."""
    full = [gradients(run, batch, Draft(), 1)[0] for batch in batches]
    rows = {}
    for name, method in contenders(run.grid.steps):
        once = isinstance(method, DraftK) or (isinstance(method, FlowBPSparse) and method.k == run.grid.steps)
        drawn = [gradients(run, batch, method, 1 if once else draws) for batch in batches]
        means = [torch.stack(samples).mean(0) for samples in drawn]
        pairs = [(one, reference) for samples, reference in zip(drawn, full, strict=True) for one in samples]
        rows[name] = Row(
            single=[cosine(one, reference) for one, reference in pairs],
            averaged=[cosine(one, reference) for one, reference in zip(means, full, strict=True)],
            together=cosine(torch.stack(means).mean(0), torch.stack(full).mean(0)),
            ratio=[float(one.norm() / reference.norm()) for one, reference in pairs],
        )
    between = [cosine(full[a], full[b]) for b in range(len(full)) for a in range(b)]
    return rows, between


def main() -> None:
    """Print one table per number of steps and guidance scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--updates", type=int, default=10, help="of draft_k with K = 5, before anything is measured")
    arguments = parser.parse_args()
    settings = TrainSettings(
        method=DraftK(k=5),
        sampler=SamplerSettings(num_inference_steps=10, guidance_scale=1.0),
        lora=LoraSettings(rank=4),
        learning_rate=1e-3,
        batch_size=arguments.batch_size,
        micro_batch_size=0,
        device="cpu",
    )
    reward = build_reward("clip_score", {"model": "emoji/clip"}, where="clip_score")
    run = prepare(settings, model_path("emoji"), Prompts(PROMPTS), [Term("clip", reward)], 0, Silent())
    rule = Backpropagation(settings.method, run)
    for step in range(arguments.updates):
        rule.update(run, step)
    for steps in arguments.steps:
        for scale in arguments.guidance:
            began = time.perf_counter()
            sampler = SamplerSettings(num_inference_steps=steps, guidance_scale=scale)
            chosen = replace(
                run,
                settings=replace(settings, sampler=sampler),
                grid=make_grid(run.model.schedule(run.size, steps), sampler),
            )
            rows, between = compare(chosen, [run.next_batch() for _ in range(arguments.batches)], arguments.draws)
            print(f"\n{steps} steps, guidance {scale:g} ({time.perf_counter() - began:.0f} s)\n")
            print("| method | a draw | a batch's draws | all | norm |\n|---|---|---|---|---|")
            for name, row in rows.items():
                spread = f"{mean(row.single):.2f} ± {pstdev(row.single):.2f}"
                print(
                    f"| {name} | {spread} | {mean(row.averaged):.2f} | {row.together:.2f} | {median(row.ratio):.2g} |"
                )
            print(f"| draft, another batch | {mean(between):.2f} ± {pstdev(between):.2f} | | | |", flush=True)


if __name__ == "__main__":
    main()
