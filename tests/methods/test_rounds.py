"""DDPO, best-of-n and DPG in training: each update against the same one by hand."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from draft.diffusion.surrogate import roll_out
from draft.methods.dpg import Critic, Rule
from draft.methods.rounds import collect
from draft.methods.rules import make_rule
from draft.methods.run import Batch
from draft.methods.values import DDPO, DPG, AlignProp, BestOfN, DRTune, ReFL
from draft.progress import Silent
from draft.training.run import Run

IMAGES = 6


def _part(run: Run, whole: Batch, some: Tensor) -> Batch:
    indices = [whole.indices[n] for n in some.tolist()]
    return Batch(run.prompts.take(indices), indices, run.conditioning[indices], whole.noise[some], None)


def _ddpo_by_hand(toy_runs: Any, run: Run, memory: dict[int, list[float]]) -> Tensor:
    """An update of DDPO with each minibatch's loss as a whole; the ratios of all its steps."""
    method = run.settings.method
    assert isinstance(method, DDPO)
    batch, rollout, found = toy_runs.all_at_once(run)
    rewards = (found + torch.tensor([float(value) for value in batch.prompts.column("value")])).float().tolist()
    for prompt, reward in zip(batch.indices, rewards, strict=True):
        memory.setdefault(prompt, []).append(reward)
    advantages = []
    for prompt, reward in zip(batch.indices, rewards, strict=True):
        own = memory[prompt][-method.prompt_buffer :] if method.prompt_buffer else []
        known = own if len(own) >= method.prompt_min_count else rewards
        advantages.append((reward - statistics.fmean(known)) / (statistics.pstdev(known) + 1e-6))
    assert max(map(abs, advantages)) > 0.5
    weight = torch.tensor(advantages)

    def log_density(some: Tensor) -> Tensor:
        """Of each noisy step and some images."""
        part, found = _part(run, batch, some), []
        for i in range(run.grid.steps - 1):  # the last step lands on the clean image
            x, x_next = rollout.states[i][some], rollout.states[i + 1][some]
            mean = toy_runs.mean_of_step(run, x, run.output(part, recorded=True)(x, i), i)
            found.append(Normal(mean, run.grid.std[i]).log_prob(x_next).flatten(1).mean(1))
        return torch.stack(found)

    with torch.no_grad():
        old, ratios = log_density(torch.arange(IMAGES)), []
    for _ in range(method.inner_epochs):
        for chosen in torch.randperm(IMAGES, generator=run.random.method).tensor_split(method.minibatches):
            ratio, a = (log_density(chosen) - old[:, chosen]).exp(), weight[chosen]
            clipped = ratio.clamp(1 - method.clip, 1 + method.clip)
            run.optimizer.zero_grad()
            torch.maximum(-a * ratio, -a * clipped).mean().backward()
            run.optimizer.step()
            ratios.append(ratio.detach())
    return torch.cat([ratio.flatten() for ratio in ratios])


@pytest.mark.parametrize(
    "method",
    [
        DDPO(prompt_buffer=0),
        DDPO(prompt_buffer=3, prompt_min_count=3),
        DDPO(prompt_buffer=5, prompt_min_count=2, minibatches=2, inner_epochs=2),
    ],
    ids=["all_prompts", "each_prompt", "minibatches"],
)
def test_an_update_of_ddpo_is_that_of_its_whole_loss(toy_runs, make_run, method: DDPO) -> None:
    made, again = make_run(method, valued=True), make_run(method)
    rule, memory = make_rule(method, made), {}
    for update in range(2 if method.prompt_buffer else 1):  # a prompt has three rewards in the second one only
        descent = rule.update(made, update)
        ratios = _ddpo_by_hand(toy_runs, again, memory)
        toy_runs.assert_same(made, again)
        steps = method.inner_epochs * method.minibatches
        assert descent.optimizer_steps == steps
        assert descent.extra["ratio"] == pytest.approx(float(ratios.mean()), abs=1e-6)
        clipped = float(((ratios - 1).abs() > method.clip).double().mean())
        assert descent.extra["ratio_clipped"] == pytest.approx(clipped, abs=1e-6)
        if steps == 1:
            assert float((ratios - 1).abs().max()) < 1e-12
        else:
            assert 0.1 < clipped < 0.9 and float((ratios - 1).abs().max()) > 1e-3
    kept = {prompt: rewards[-method.prompt_buffer :] for prompt, rewards in memory.items() if method.prompt_buffer}
    assert rule.state() == {"rewards": {prompt: pytest.approx(rewards, rel=1e-7) for prompt, rewards in kept.items()}}


def test_kl_pulls_ddpo_to_the_base_model_as_its_formula_says(toy_runs, make_run) -> None:
    kl = 0.5
    plain, held, again = (make_run(DDPO(prompt_buffer=0, kl=each), valued=True) for each in (0.0, kl, kl))
    make_rule(plain.settings.method, plain).update(plain, 0)
    descent = make_rule(held.settings.method, held).update(held, 0)
    batch, rollout, _ = toy_runs.all_at_once(again)
    now, base, parts = again.output(batch, recorded=True), again.output(batch, adapted=False), []
    for i in range(again.grid.steps - 1):
        x = rollout.states[i]
        parts.append((now(x, i) - base(x, i).detach()).square().mean())
    distance = torch.stack(parts).mean()
    assert descent.extra["kl"] == pytest.approx(float(distance.detach()), rel=1e-5)
    pulls = torch.autograd.grad(kl * distance, again.parameters)
    for with_kl, without, pull in zip(held.parameters, plain.parameters, pulls, strict=True):
        size = float(pull.abs().max())
        assert size > 1e-6
        torch.testing.assert_close(with_kl.grad - without.grad, pull, rtol=1e-6, atol=1e-7 * size)


def _best_of_n_by_hand(toy_runs: Any, run: Run) -> float:
    """An update with one step of the optimiser, its loss as a whole; returns that loss."""
    method, settings = run.settings.method, run.settings
    assert isinstance(method, BestOfN)
    indices: list[int] = []
    noises: list[Tensor] = []
    for _ in range(settings.gradient_accumulation_steps):
        drawn = run.next_batch()
        indices += drawn.indices * method.samples
        noises += [drawn.noise, *(run.draw_noise(drawn.noise) for _ in range(method.samples - 1))]
    whole = Batch(run.prompts.take(indices), indices, run.conditioning[indices], torch.cat(noises), None)
    clean = roll_out(run.output(whole), run.grid, whole.noise).states[-1]
    with torch.no_grad():
        rewards = toy_runs.brightness(run, clean).float().tolist()
    images = list(range(len(rewards)))
    weights = dict.fromkeys(images, 0.0)
    groups = [[n for n in images if indices[n] == prompt] for prompt in range(len(toy_runs.PROMPTS))]
    if method.selection == "weighted":
        powers = (method.sharpness * torch.tensor(rewards, dtype=torch.float64)).exp()
        weights = dict(zip(images, (len(images) * powers / powers.sum()).tolist(), strict=True))
    for group in groups if method.selection == "best" or method.per_prompt else [images]:
        kept = 1 if method.selection == "best" else round(method.share * len(group))
        if method.selection != "weighted":
            weights |= dict.fromkeys(sorted(group, key=lambda n: -rewards[n])[:kept], 1.0)
    kept_images = torch.tensor([n for n in images if weights[n] > 0])
    order = kept_images[torch.randperm(len(kept_images), generator=run.random.method)]
    sums = []
    for some in order.split(settings.batch_size):
        count = 1000 if method.times == "schedule" else run.grid.steps
        i = int(torch.randint(count, (), generator=run.random.method))
        time = 999 - i if method.times == "schedule" else run.grid.times[i]
        z = run.draw_noise(clean[some])
        share = run.model.noise.alphas_cumprod[int(time)]
        x = share**0.5 * clean[some] + (1 - share) ** 0.5 * z
        e = run.model.denoise(x, torch.tensor(time), whole.conditioning[some])
        if method.guided:
            blank = run.model.denoise(x, torch.tensor(time), run.unconditional.expand(len(some)))
            e = blank + run.settings.sampler.guidance_scale * (e - blank)
        factors = torch.tensor([weights[n] for n in some.tolist()])
        sums.append((factors * (e - z).square().flatten(1).mean(1)).sum())
    loss = torch.stack(sums).sum() / len(order)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    return float(loss.detach())


BEST: list[Any] = [
    BestOfN(selection="weighted", sharpness=50.0, samples=2),
    BestOfN(selection="weighted", sharpness=50.0, times="sampler"),
    BestOfN(selection="top", share=0.3, samples=3, guided=False),
    BestOfN(selection="top", share=0.5, samples=3, per_prompt=True),
    BestOfN(selection="best", samples=3),
]


@pytest.mark.parametrize("method", BEST, ids=["weighted", "sampler", "top", "per_prompt", "best"])
def test_an_update_of_best_of_n_is_that_of_its_whole_loss(toy_runs, make_run, method: BestOfN) -> None:
    method = replace(method, inner_epochs=1)
    made, again = (make_run(method, gradient_accumulation_steps=2) for _ in range(2))
    descent = make_rule(method, made).update(made, 0)
    loss = _best_of_n_by_hand(toy_runs, again)
    toy_runs.assert_same(made, again)
    assert descent.extra["denoising_loss"] == pytest.approx(loss, rel=1e-5)
    # Of 12 images; one prompt has 6 of them, the others 3 each.
    kept = {"weighted": 12, "top": 3 + 2 + 2 if method.per_prompt else 4, "best": 3}[method.selection]
    assert descent.extra["kept"] == pytest.approx(kept / 12)


def test_best_of_n_makes_a_step_for_each_part_of_each_pass(make_run) -> None:
    method = BestOfN(selection="best", samples=2, inner_epochs=4, minibatches=2)
    run = make_run(method, gradient_accumulation_steps=2)
    steps: list[list[Tensor]] = []
    run.optimizer.register_step_post_hook(lambda *_: steps.append([p.detach().clone() for p in run.parameters]))
    assert make_rule(method, run).update(run, 0).optimizer_steps == len(steps) == 8
    assert all(not torch.equal(a[0], b[0]) for a, b in pairwise(steps))


def test_each_sample_keeps_its_prompt_its_noise_its_path_and_its_reward(toy_runs, make_run) -> None:
    run = make_run(DDPO(), valued=True)
    taken = collect(run, samples=3)
    batch, states = taken.batch, taken.rollout.states
    assert len(taken) == 18 == len(taken.figures) * 2
    pairs = [batch.indices[n : n + 2] for n in range(0, 18, 2)]
    assert pairs[0] == pairs[1] == pairs[2] and pairs[3] == pairs[4] == pairs[5] and pairs[6] == pairs[7] == pairs[8]
    assert sorted(batch.indices) == [0] * 6 + [1] * 6 + [2] * 6 != batch.indices
    assert list(batch.prompts) == [toy_runs.PROMPTS[index] for index in batch.indices]
    assert torch.equal(batch.conditioning.tensors["text"], run.conditioning[batch.indices].tensors["text"])
    assert torch.equal(states[0], batch.noise) and len(batch.noise.flatten(1).unique(dim=0)) == 18
    with torch.no_grad():
        worth = torch.tensor([float(toy_runs.PROMPTS.column("value")[index]) for index in batch.indices])
        torch.testing.assert_close(taken.rewards, (worth + toy_runs.brightness(run, states[-1])).float())
        output = run.output(batch)
        for i in range(run.grid.steps):
            out = output(states[i], i)
            torch.testing.assert_close(taken.rollout.outs[i], out, rtol=1e-9, atol=1e-9)
            fresh = states[i + 1] - toy_runs.mean_of_step(run, states[i], out, i)
            if run.grid.std[i]:
                assert 0.9 < float((fresh / run.grid.std[i]).std()) < 1.1
                assert len((fresh / run.grid.std[i]).round(decimals=6).flatten(1).unique(dim=0)) == 18
            else:
                assert float(fresh.abs().max()) < 1e-9
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    some = taken.take(order)
    assert some.indices == [batch.indices[n] for n in order.tolist()]
    assert list(some.prompts) == [toy_runs.PROMPTS[index] for index in some.indices]
    assert some.prompts.column("value") == [toy_runs.PROMPTS.column("value")[index] for index in some.indices]
    assert torch.equal(some.conditioning.tensors["text"], run.conditioning[some.indices].tensors["text"])
    assert torch.equal(some.noise, batch.noise[order])
    last = collect(make_run(DDPO(), valued=True), samples=3, path=False)
    assert torch.equal(last.rollout.states[0], states[-1]) and last.rollout.outs == ()
    assert torch.equal(last.rewards, taken.rewards)


class CriticByHand:
    """DPG with every loss as a whole, beginning where the rule's critic begins."""

    def __init__(self, toy_runs: Any, run: Run) -> None:
        method = run.settings.method
        assert isinstance(method, DPG)
        self.toy_runs, self.method = toy_runs, method
        width, generator = method.critic_width, run.random.method
        self.critic = Critic(rank=2, channels=4, text=16, width=width, generator=generator).double()
        self.adam = torch.optim.Adam(self.critic.parameters(), lr=method.critic_learning_rate)
        self.rewards: list[float] = []

    def update(self, run: Run) -> tuple[float, float]:
        """One update; returns the critic's loss and its guess of the steps' means."""
        method, grid, draws = self.method, run.grid, run.random.method
        batch, rollout, found = self.toy_runs.all_at_once(run)
        self.rewards += found.float().tolist()
        goals = (found.float().double() - statistics.fmean(self.rewards)) / statistics.pstdev(self.rewards)
        levels = torch.tensor(list(zip(grid.next_alpha, grid.next_sigma, strict=True)))
        losses = []
        for _ in range(method.critic_steps):
            steps = torch.randint(grid.steps, (method.critic_batch,), generator=draws)
            chosen = torch.randint(IMAGES, (method.critic_batch,), generator=draws)
            x = torch.stack(rollout.states[1:])[steps, chosen]
            loss = (
                (self.critic(x, levels[steps], batch.conditioning[chosen].vector(x.dtype)) - goals[chosen])
                .square()
                .mean()
            )
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
            losses.append(float(loss.detach()))
        count = round(method.share * grid.steps)
        guesses = []
        for i in torch.randperm(grid.steps, generator=draws)[:count].tolist():
            x = rollout.states[i]
            mean = self.toy_runs.mean_of_step(run, x, run.output(batch, recorded=True)(x, i), i)
            guesses.append(self.critic(mean, levels[i].expand(IMAGES, 2), batch.conditioning.vector(mean.dtype)))
        value = torch.stack(guesses).mean()
        run.optimizer.zero_grad()
        (-value).backward()
        run.optimizer.step()
        return statistics.fmean(losses), float(value.detach())


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_an_update_of_dpg_is_that_of_its_whole_losses(toy_runs, make_run, share: float) -> None:
    method = DPG(share=share, critic_width=8, critic_batch=16, critic_steps=5, critic_learning_rate=1e-2)
    made, again = make_run(method, micro_batch_size=1), make_run(method, micro_batch_size=0)
    rule, hand = make_rule(method, made), CriticByHand(toy_runs, again)
    assert isinstance(rule, Rule)
    rule.critic.double()
    for update in range(2):  # the second one has the first one's rewards in its statistics
        descent = rule.update(made, update)
        critic_loss, value = hand.update(again)
        toy_runs.assert_same(made, again)
        for one, other in zip(rule.critic.parameters(), hand.critic.parameters(), strict=True):
            assert one.requires_grad
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        assert descent.extra["critic_loss"] == pytest.approx(critic_loss, rel=1e-5)
        assert descent.extra["value"] == pytest.approx(value, rel=1e-4)


class Copy(Silent):
    """A reporter that copies the training's folder as it is after update 2, before that update's checkpoint."""

    def __init__(self, folder: Path, to: Path) -> None:
        self.folder, self.to, self.made = folder, to, 0

    def advance(self, count: int = 1, values: Any = None) -> None:
        self.made += count
        if self.made == 2:
            shutil.copytree(self.folder, self.to)


@pytest.mark.parametrize(
    "method",
    [
        DDPO(prompt_buffer=3, prompt_min_count=2, minibatches=2),
        BestOfN(samples=2, minibatches=2, inner_epochs=1),
        DPG(critic_width=8, critic_batch=8, critic_steps=3, share=0.5),
        ReFL(window=3),
        AlignProp(),
        DRTune(k=2, stop=0.67),
    ],
    ids=lambda method: method.kind,
)
def test_an_interrupted_training_ends_with_the_same_bytes(
    toy_runs, tiny_model: Path, tmp_path: Path, method: Any
) -> None:
    settings = replace(toy_runs.SETTINGS, method=method, gradient_accumulation_steps=1)
    whole = toy_runs.trained(settings, tiny_model, tmp_path / "whole", Copy(tmp_path / "whole", tmp_path / "cut"))
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000001.ckpt"]
    assert not (tmp_path / "cut" / "adapter.safetensors").exists()
    cut = toy_runs.trained(settings, tiny_model, tmp_path / "cut")
    adapters = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "cut")]
    assert adapters[0] == adapters[1]
    assert [row | {"seconds": 0} for row in cut] == [row | {"seconds": 0} for row in whole]
