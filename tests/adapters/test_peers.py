"""Where other mixers are wrong, by their published formulas restated here, and ours is not.

Wanted is dW = sum_i w_i (alpha_i / r_i) B_i A_i. The formulas are those of kohya-ss/sd-scripts
(networks/sdxl_merge_lora.py, networks/svd_merge_lora.py), ostris/ai-toolkit (merge_loras.py) and peft 0.21
(tuners/lora/model.py, add_weighted_adapter); what is measured here was measured on their own code before.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from packaging.version import Version
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from draft.adapters.algebra.compress import compress
from draft.adapters.algebra.mix import mix
from draft.adapters.factors import Adapter, Factors

NAME = "unet.mid_block.attentions.0.proj_in"
OUT, IN = 40, 48


@dataclass(frozen=True)
class Lora:
    """A module as a file holds it."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def change(self) -> Tensor:
        return self.alpha / len(self.down) * self.up @ self.down


def draw(seed: int, *, rank: int = 8, alpha: float | None = None) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, IN, generator=generator, dtype=torch.float64)
    up = torch.randn(OUT, rank, generator=generator, dtype=torch.float64)
    return Lora(down, up, rank if alpha is None else alpha)


def wanted(loras: Sequence[Lora], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * lora.change for lora, weight in zip(loras, weights, strict=True)]).sum(0)


def ours(loras: Sequence[Lora], weights: Sequence[float]) -> Tensor:
    inputs = [
        (Adapter({NAME: Factors(lora.down, lora.up, lora.alpha / len(lora.down))}), weight)
        for lora, weight in zip(loras, weights, strict=True)
    ]
    factors = mix(inputs).modules[NAME]
    return factors.up @ factors.down


def off(change: Tensor, right: Tensor) -> float:
    return float((change - right).norm() / right.norm())


def kohya_merge(loras: Sequence[Lora], ratios: Sequence[float]) -> Tensor:
    """A and B are added apart, each times sqrt(alpha_i / alpha_1) and times the ratio: the ratio is squared."""
    alpha = loras[0].alpha
    if len({len(lora.down) for lora in loras}) > 1:
        raise AssertionError("weights shape mismatch merging v1 and v2, different dims?")
    shares = [ratio * math.sqrt(lora.alpha / alpha) for lora, ratio in zip(loras, ratios, strict=True)]
    down = torch.stack([share * lora.down for lora, share in zip(loras, shares, strict=True)]).sum(0)
    up = torch.stack([share * lora.up for lora, share in zip(loras, shares, strict=True)]).sum(0)
    return alpha / len(down) * up @ down


def kohya_concat(loras: Sequence[Lora], ratios: Sequence[float]) -> Tensor:
    """A and B are stacked, each times the ratio; the first alpha stays, though the rank has become the sum."""
    alpha = loras[0].alpha
    shares = [ratio * math.sqrt(lora.alpha / alpha) for lora, ratio in zip(loras, ratios, strict=True)]
    down = torch.cat([share * lora.down for lora, share in zip(loras, shares, strict=True)], 0)
    up = torch.cat([share * lora.up for lora, share in zip(loras, shares, strict=True)], 1)
    return alpha / len(down) * up @ down


def kohya_svd(loras: Sequence[Lora], ratios: Sequence[float], *, rank: int) -> Tensor:
    """The right dense sum and its SVD, of which U and V are then clamped at their 0.99 quantile."""
    u, s, v = torch.linalg.svd(wanted(loras, ratios))
    u, v = u[:, :rank] @ torch.diag(s[:rank]), v[:rank]
    high = torch.quantile(torch.cat([u.flatten(), v.flatten()]), 0.99)
    return u.clamp(-high, high) @ v.clamp(-high, high)


def ai_toolkit(loras: Sequence[Lora], strengths: Sequence[float], *, alphas: bool) -> Tensor:
    """Every tensor of a file, alpha among them, is multiplied by its strength, and the tensors are added."""
    down = torch.stack([w * lora.down for lora, w in zip(loras, strengths, strict=True)]).sum(0)
    up = torch.stack([w * lora.up for lora, w in zip(loras, strengths, strict=True)]).sum(0)
    alpha = sum(w * lora.alpha for lora, w in zip(loras, strengths, strict=True)) if alphas else len(down)
    return alpha / len(down) * up @ down


@pytest.mark.parametrize(
    ("peer", "share"),
    [
        (kohya_merge, 0.25),
        (kohya_concat, 0.25),
        (lambda loras, weights: ai_toolkit(loras, weights, alphas=False), 0.25),
        (lambda loras, weights: ai_toolkit(loras, weights, alphas=True), 0.125),
    ],
)
def test_half_of_one_adapter_is_half_of_it_here_and_a_quarter_or_an_eighth_elsewhere(
    peer: Callable[..., Tensor], share: float
) -> None:
    lora = draw(0)
    torch.testing.assert_close(peer([lora], [0.5]), share * lora.change)
    torch.testing.assert_close(ours([lora], [0.5]), 0.5 * lora.change)


@pytest.mark.parametrize(
    "peer", [kohya_merge, lambda loras, weights: ai_toolkit(loras, weights, alphas=False)], ids=["kohya", "ai-toolkit"]
)
def test_added_factors_have_cross_terms_and_squared_weights(peer: Callable[..., Tensor]) -> None:
    loras, weights = [draw(0), draw(1)], [0.7, 0.3]
    a, b = loras
    foreign = 0.7 * 0.3 * (a.up @ b.down + b.up @ a.down)
    torch.testing.assert_close(peer(loras, weights), 0.49 * a.change + 0.09 * b.change + foreign)
    assert 0.5 < off(peer(loras, weights), wanted(loras, weights)) < 0.65
    assert off(ours(loras, weights), wanted(loras, weights)) < 1e-14


def test_kohyas_concat_keeps_the_first_alpha_while_the_rank_grows() -> None:
    a, b, wide = draw(0), draw(1), draw(2, rank=16)
    torch.testing.assert_close(kohya_concat([a, b], [1.0, 1.0]), 0.5 * a.change + 0.5 * b.change)
    torch.testing.assert_close(kohya_concat([a, b], [0.7, 0.3]), 0.245 * a.change + 0.045 * b.change)
    torch.testing.assert_close(kohya_concat([a, wide], [1.0, 1.0]), a.change / 3 + 2 * wide.change / 3)
    for loras, weights in (([a, b], [1.0, 1.0]), ([a, b], [0.7, 0.3]), ([a, wide], [1.0, 1.0])):
        assert off(ours(loras, weights), wanted(loras, weights)) < 1e-14


def test_different_ranks_and_alphas_are_nothing_special_here_and_stop_kohyas_merge() -> None:
    loras, weights = [draw(0, alpha=1.0), draw(1, rank=16, alpha=24.0)], [1.5, -0.5]
    with pytest.raises(AssertionError, match="different dims"):
        kohya_merge(loras, weights)
    assert off(ours(loras, weights), wanted(loras, weights)) < 1e-14


def test_kohyas_svd_merge_clamps_even_at_full_rank_and_our_cut_is_the_best_there_is() -> None:
    loras, weights = [draw(0), draw(1)], [0.7, 0.3]
    assert 0.1 < off(kohya_svd(loras, weights, rank=16), wanted(loras, weights)) < 0.25
    whole = Adapter({NAME: Factors(loras[0].down, loras[0].up)}), Adapter({NAME: Factors(loras[1].down, loras[1].up)})
    for rank in (16, 8):
        cut = compress(mix(list(zip(whole, weights, strict=True))), rank=rank)
        factors = cut.adapter.modules[NAME]
        best = torch.linalg.svdvals(wanted(loras, weights))
        assert off(factors.up @ factors.down, wanted(loras, weights)) == pytest.approx(
            float(best[rank:].norm() / best.norm()), abs=1e-13
        )
        assert cut.error < off(kohya_svd(loras, weights, rank=rank), wanted(loras, weights))


def test_one_minus_one_is_nothing_here_and_not_in_ai_toolkit() -> None:
    a, b = draw(0), draw(1)
    assert off(ai_toolkit([a, b], [1.0, -1.0], alphas=False), a.change - b.change) > 1.3
    assert not ai_toolkit([a, b], [1.0, -1.0], alphas=True).any(), "the alphas cancel, and everything with them"
    assert off(ours([a, b], [1.0, -1.0]), a.change - b.change) < 1e-14
    assert not ours([a, a], [1.0, -1.0]).any()


def peft_model(loras: Sequence[Lora], *, rslora: bool = False) -> LoraModel:
    """A linear layer with the adapters in peft's own hands."""
    model = nn.Module()
    model.add_module("proj_in", nn.Linear(IN, OUT, bias=False, dtype=torch.float64))
    tuned: LoraModel | None = None
    for index, lora in enumerate(loras):
        alpha: Any = lora.alpha  # peft takes any number
        config = LoraConfig(r=len(lora.down), lora_alpha=alpha, target_modules=["proj_in"], use_rslora=rslora)
        if tuned is None:
            tuned = LoraModel(model, {f"a{index}": config}, f"a{index}")
        else:
            tuned.peft_config[f"a{index}"] = config
            tuned.inject_adapter(model, f"a{index}")
    assert tuned is not None
    layer = model.proj_in
    assert isinstance(layer, LoraLayer)
    with torch.no_grad():
        for index, lora in enumerate(loras):
            layer.lora_A[f"a{index}"].weight.copy_(lora.down)  # type: ignore[operator, union-attr]
            layer.lora_B[f"a{index}"].weight.copy_(lora.up)  # type: ignore[operator, union-attr]
    return tuned


def peft_mix(loras: Sequence[Lora], weights: Sequence[float], kind: Any, *, rslora: bool = False) -> Tensor:
    tuned = peft_model(loras, rslora=rslora)
    names = [f"a{index}" for index in range(len(loras))]
    tuned.add_weighted_adapter(names, list(weights), "mixed", combination_type=kind)
    return tuned.model.proj_in.get_delta_weight("mixed").detach()  # type: ignore[union-attr, operator]


def test_pefts_cat_agrees_with_ours_whatever_the_ranks_and_alphas() -> None:
    loras, weights = [draw(0, alpha=4.0), draw(1, rank=5, alpha=10.0), draw(2, rank=3)], [0.7, 0.3, 1.2]
    torch.testing.assert_close(peft_mix(loras, weights, "cat"), ours(loras, weights))
    torch.testing.assert_close(ours(loras, weights), wanted(loras, weights))


def test_pefts_linear_has_cross_terms() -> None:
    loras, weights = [draw(0), draw(1)], [0.7, 0.3]
    a, b = loras
    foreign = math.sqrt(0.21) * (a.up @ b.down + b.up @ a.down)
    found = peft_mix(loras, weights, "linear")
    # peft takes its square roots in float32.
    torch.testing.assert_close(found, wanted(loras, weights) + foreign, rtol=1e-5, atol=1e-5)
    assert 0.75 < off(found, wanted(loras, weights)) < 1.0


def test_pefts_svd_loses_by_default_what_a_larger_rank_would_keep() -> None:
    loras, weights = [draw(0), draw(1)], [0.7, 0.3]
    lost = off(peft_mix(loras, weights, "svd"), wanted(loras, weights))
    whole = [Adapter({NAME: Factors(lora.down, lora.up)}) for lora in loras]
    # At peft's default, the larger of the two ranks, ours loses as much, and says so before it writes.
    assert lost > 0.2
    assert compress(mix(list(zip(whole, weights, strict=True))), rank=8).error == pytest.approx(lost, rel=1e-6)


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_pefts_mix_of_rank_stabilised_adapters_is_several_times_too_strong(kind: str) -> None:
    if kind == "svd" and Version(importlib.metadata.version("peft")) < Version("0.21"):
        pytest.skip("before peft 0.21 the factor is another one, 4 here")
    rank, alpha = 8, 4.0
    lora = draw(0, rank=rank, alpha=alpha)
    # rsLoRA: alpha / sqrt(r) instead of alpha / r. In our reader that is the scale.
    right = alpha / math.sqrt(rank) * lora.up @ lora.down
    found = peft_mix([lora, lora], [0.5, 0.5], kind, rslora=True)
    strength = float((found * right).sum() / right.square().sum())
    # The mixed adapter inherits use_rslora, its alpha is its rank R: applied at R / sqrt(R) instead of 1.
    assert strength == pytest.approx(math.sqrt(2 * rank if kind == "cat" else rank), rel=1e-6)
    factors = Factors(lora.down, lora.up, alpha / math.sqrt(rank))
    mixed = mix([(Adapter({NAME: factors}), 0.5), (Adapter({NAME: factors}), 0.5)]).modules[NAME]
    torch.testing.assert_close(mixed.up @ mixed.down, right)
