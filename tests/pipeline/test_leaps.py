"""What the methods with a cached rollout do not go with is refused with the reason, before anything is loaded."""

from __future__ import annotations

import pytest

from draft.errors import ConfigErrors, DraftError
from draft.pipeline.load import load_pipeline

LINE = "learning_rate: ${vars.rate}"


@pytest.fixture
def errors(workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workshop.folder)

    def errors(*swaps: tuple[str, str]) -> list[str]:
        text = workshop.file.read_text()
        for before, after in swaps:
            assert before in text
            text = text.replace(before, after)
        workshop.file.write_text(text)
        with pytest.raises(DraftError) as caught:
            load_pipeline("demo.yaml", [])
        found = caught.value.errors if isinstance(caught.value, ConfigErrors) else [caught.value]
        return [str(error) for error in found]

    return errors


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("kind: flow_bp_sparse, k: 60", "k must be at most sampler.num_inference_steps, 50 (got 60)"),
        ("kind: flow_bp_sparse, k: 6, tail: 0.1", "k must be at most 5, the 5 steps of method.tail (got 6)"),
        ("kind: flow_bp_bridge, k: 1", "k must be at least 2 (got 1)"),
        (
            "kind: flow_bp_lagrange, j_tail: 0.02",
            "j_tail must leave at least 2 of 50 steps for 'dirichlet' pairs (got 0.02)\n  hint: at least 0.04",
        ),
        ("kind: leap_align, alpha: 2", "alpha must be at most 1 (got 2)"),
        ("kind: direct_align, levels: [0.5, 0.2]", "levels must rise, noisier level first (got [0.5, 0.2])"),
        (
            "kind: direct_align, positive: [Real]",
            "negative must have words where the other side has (got none)\n  hint: or leave both out",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(errors, method: str, message: str) -> None:
    assert errors((LINE, f"method: {{{method}}}")) == [f"demo.yaml:11: stages.train.method.{message}"]


@pytest.mark.parametrize("kind", ["direct_align", "leap_align", "flow_bp_sparse", "flow_bp_bridge", "flow_bp_lagrange"])
def test_fresh_noise_in_the_rollout_is_refused(errors, kind: str) -> None:
    (found,) = errors((LINE, f"method: {{kind: {kind}}}\n    sampler: {{eta: 0.5}}"))
    assert found.startswith(f"demo.yaml:12: stages.train.sampler.eta must be 0 for {kind}: ")


@pytest.mark.parametrize("kind", ["leap_align", "flow_bp_lagrange"])
def test_methods_that_weigh_samples_are_refused_for_rewards_of_a_batch(errors, kind: str) -> None:
    (found,) = errors((LINE, f"method: {{kind: {kind}}}"), ("jpeg: {quality: 50}", "diversity: {features: pixels}"))
    assert found == (
        f"demo.yaml:13: {kind} cannot train for reward 'diversity', whose scores depend on the batch: the method "
        "weighs each sample by itself\n  hint: use draft_lv or flow_bp_sparse"
    )


@pytest.mark.parametrize("kind", ["direct_align", "flow_bp_sparse", "flow_bp_bridge"])
def test_a_hinge_is_refused_for_rewards_of_a_batch_and_reuse_is_not(errors, kind: str) -> None:
    options = f"method: {{kind: {kind}}}\n    rollout_reuse: 3\n    loss: {{kind: hinge, margin: 2}}"
    (found,) = errors((LINE, options), ("jpeg: {quality: 50}", "diversity: {features: pixels}"))
    assert "stages.train.loss must be linear with reward 'diversity'" in found
