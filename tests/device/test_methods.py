"""Every method trains on an accelerator, to what it trains to on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import load_file

METHODS: dict[str, dict[str, Any]] = {
    "adjoint_matching": {"sampler": {"eta": 1.0}},
    "alignprop": {},
    "best_of_n": {"method": {"inner_epochs": 1, "samples": 2}},
    "ddpo": {"sampler": {"eta": 1.0}},
    "direct_align": {},
    "dpg": {"sampler": {"eta": 1.0}, "method": {"critic_steps": 1, "critic_width": 4, "critic_batch": 4}},
    "draft": {},
    "draft_k": {"method": {"k": 1}},
    "draft_lv": {"method": {"copies": 2}},
    "drtune": {"method": {"k": 1}},
    "flow_bp_bridge": {"method": {"k": 2}},
    "flow_bp_lagrange": {"method": {"pairs": "uniform", "j_tail": 0.5, "leap_cap": 0}},
    "flow_bp_sparse": {"method": {"k": 2}},
    "leap_align": {"method": {"leap_cap": 0}},
    "refl": {"method": {"window": 2}},
    "vgg_flow": {},
}
"""Each method to what it needs for a small training."""


def test_every_method_of_the_schema_is_here(schema: dict[str, Any]) -> None:
    assert set(METHODS) == set(schema["$defs"]["TrainStage"]["properties"]["method"]["discriminator"]["mapping"])


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_trains_as_on_the_cpu(bench: Any, metrics: Any, kind: str) -> None:
    settings = METHODS[kind]
    method = {"kind": kind, **settings.get("method", {})}
    stages = {"train": bench.stage("train", sampler=settings.get("sampler", {}), method=method)}
    on_cpu, there = (folder / "train" for folder in bench.run_on_both(stages))
    assert len(metrics(there)) == 1
    for expected, row in zip(metrics(on_cpu), metrics(there), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-7)
    expected, adapter = (load_file(folder / "adapter.safetensors") for folder in (on_cpu, there))
    assert set(adapter) == set(expected)
    for name, tensor in adapter.items():
        # Adam makes a full step also of a gradient that is rounding alone, so not number by number.
        assert (tensor - expected[name]).norm() <= 1e-3 * expected[name].norm(), name
