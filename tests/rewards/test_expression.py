"""`expression`: a small language that is never executed, and rewards made of others in every part of a pipeline."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import draft
from draft.errors import ConfigErrors, DraftError, OptionError
from draft.pipeline.check import Pipeline
from draft.pipeline.identity import identity
from draft.pipeline.load import load_pipeline
from draft.rewards.parts import walk_reward, without_gradient
from draft.rewards.reward import Term
from draft.rewards.terms import build_reward, reward_config
from draft.scoring.guards import check_terms
from draft.testing import check_reward
from draft_rewards._formula import check_names, evaluate, parse
from draft_rewards.expression import Expression
from draft_rewards.owlvit_count import OwlvitCount

PIPELINE = """\
name: demo
stages:
  train:
    kind: train
    model: emoji
    prompts: [a cat]
    rewards:
      fit:
        use: expression
        formula: relu(a) - 0.3 * b
        of:
          a: {use: clip_score, text: a cat}
          b: {use: jpeg}
"""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loaded(folder: Path, *swaps: tuple[str, str], add: str = "", rehearse: bool = False) -> Pipeline:
    text = PIPELINE
    for old, new in swaps:
        assert old in text
        text = text.replace(old, new)
    (folder / "demo.yaml").write_text(text + add, encoding="utf-8")
    return load_pipeline(folder / "demo.yaml", (), rehearse=rehearse)


def refused(folder: Path, *swaps: tuple[str, str], **options: Any) -> list[str]:
    with pytest.raises(DraftError) as raised:
        loaded(folder, *swaps, **options)
    found = raised.value.errors if isinstance(raised.value, ConfigErrors) else [raised.value]
    return [str(error).removeprefix(f"{folder}/") for error in found]


CLOSED_FORMS: dict[str, tuple[Any, Any, Any]] = {
    "a - 0.3*b": (lambda a, b: a - 0.3 * b, lambda a, b: 1, lambda a, b: -0.3),
    "-a**2 / b": (lambda a, b: -(a**2) / b, lambda a, b: -2 * a / b, lambda a, b: a * a / b**2),
    "2 ** -a * (b + 1)": (
        lambda a, b: 2**-a * (b + 1),
        lambda a, b: -math.log(2) * 2**-a * (b + 1),
        lambda a, b: 2**-a,
    ),
    "min(a, b, 0.9) + max(a, b)": (lambda a, b: 0.9 + max(a, b), lambda a, b: a > b, lambda a, b: b > a),
    "abs(a - b)": (lambda a, b: abs(a - b), lambda a, b: 1 if a > b else -1, lambda a, b: 1 if b > a else -1),
    "exp(-a) * log(b) + sqrt(b)": (
        lambda a, b: math.exp(-a) * math.log(b) + b**0.5,
        lambda a, b: -math.exp(-a) * math.log(b),
        lambda a, b: math.exp(-a) / b + 0.5 * b**-0.5,
    ),
    "sigmoid(4 * (a - b))": (
        lambda a, b: sigmoid(4 * (a - b)),
        lambda a, b: 4 * sigmoid(4 * (a - b)) * sigmoid(4 * (b - a)),
        lambda a, b: -4 * sigmoid(4 * (a - b)) * sigmoid(4 * (b - a)),
    ),
    "relu(a - 1.3) * clamp(b, 1, 2)": (
        lambda a, b: max(a - 1.3, 0) * min(max(b, 1), 2),
        lambda a, b: (a > 1.3) * min(max(b, 1), 2),
        lambda a, b: max(a - 1.3, 0) * (1 < b < 2),
    ),
}


@pytest.mark.parametrize("formula", CLOSED_FORMS)
def test_values_and_gradients_are_those_of_the_closed_form(formula: str) -> None:
    a, b = column(1.0, 1.5, 2.5).requires_grad_(), column(1.7, 0.95, 2.2).requires_grad_()
    result = evaluate(parse(formula), {"a": a, "b": b})
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    found = (result.detach(), *torch.autograd.grad(result.sum(), (a, b)))
    for tensor, wanted in zip(found, CLOSED_FORMS[formula], strict=True):
        torch.testing.assert_close(tensor, column(*(float(wanted(*pair)) for pair in pairs)))


NUMBERS = st.floats(0.25, 4).map(lambda x: f"{x:.3f}") | st.sampled_from(["a", "b", "3"])
FORMULAS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(" ".join)
        | inner.map("({})".format)
        | inner.map("-{}".format)
        | st.tuples(inner, st.sampled_from(["2", "3"])).map("({0[0]}) ** {0[1]}".format)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(FORMULAS)
def test_precedence_is_that_of_python(formula: str) -> None:
    a, b = 1.25, 0.5
    try:
        wanted = eval(formula, {"a": a, "b": b})
    except ZeroDivisionError:
        return
    values = {"a": column(a), "b": column(b)}
    torch.testing.assert_close(evaluate(parse(formula), values) + 0 * values["a"], column(wanted), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="ab01.+-*/()[]{},:=<>!@#%^&|~'\"\\_ \n\tlminexp", max_size=40) | st.text(max_size=20))
def test_whatever_is_written_is_a_formula_or_an_error_of_ours(text: str) -> None:
    try:
        tree = parse(text)
    except OptionError:
        return
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    result = evaluate(tree, {"a": column(1), **dict.fromkeys(names, column(1))})
    assert isinstance(result, torch.Tensor)


@pytest.mark.parametrize(
    ("formula", "told"),
    {
        "__import__('os').system('x')": "must be arithmetic",
        "a.__class__": "must be arithmetic (got 'a.__class__')",
        "(1).real + a": "must be arithmetic (got '(1).real')",
        "a[0]": "must be arithmetic",
        "a if a else 1": "must be arithmetic",
        "a < 1": "must be arithmetic (got 'a < 1')",
        "a and 1": "must be arithmetic",
        "lambda: a": "must be arithmetic",
        "[a for a in a]": "must be arithmetic",
        "(a := 1)": "must be arithmetic",
        "f'{a}'": "must be arithmetic",
        "a, 1": "must be arithmetic",
        "a // 2": "must be arithmetic",
        "a % 2": "must be arithmetic",
        "a @ a": "must be arithmetic",
        "~a": "must be arithmetic",
        "+a": "must be arithmetic",
        "min(*a, 1)": "must be arithmetic (got '*a')",
        "exp(x=a)": "must be arithmetic",
        "abs(a)(1)": "must be arithmetic",
        "a ^ 2": "must be arithmetic (got 'a ^ 2')\n  hint: write ** for a power",
        "a + 'x'": "must have finite numbers only (got \"'x'\")",
        "a * True": "must have finite numbers only (got 'True')",
        "a + 1j": "must have finite numbers only (got '1j')",
        "a - 1e999": "must have finite numbers only (got '1e999')",
        "a + None": "must have finite numbers only",
        "sigmiod(a)": "uses an unknown function (got 'sigmiod(a)')\n  hint: did you mean 'sigmoid'?",
        "eval(a)": "uses an unknown function (got 'eval(a)')",
        "min(a)": "must give min at least 2 arguments (got 'min(a)')",
        "clamp(a, 0)": "must give clamp 3 arguments (got 'clamp(a, 0)')",
        "exp(a, 1)": "must give exp 1 argument (got 'exp(a, 1)')",
        "exp * a": "must give a function its arguments (got 'exp')\n  hint: write exp(...)",
        "a +": "cannot be read: invalid syntax",
        "a; a": "cannot be read: invalid syntax",
        "": "cannot be read",
        "(" * 300 + "a" + ")" * 300: "must have at most 500 characters (got 601)",
        "-" * 200 + "a": "must be nested at most 100 deep",
    }.items(),
)
def test_what_is_no_arithmetic_is_refused(formula: str, told: str) -> None:
    with pytest.raises(OptionError) as raised:
        parse(formula)
    assert str(raised.value).startswith(f"the formula {told}")


@pytest.mark.parametrize(
    ("formula", "names", "told"),
    [
        ("scroe + 1", ["score"], "uses a name that is not there (got 'scroe')\n  hint: did you mean 'score'?"),
        ("a + x", ["a", "b"], "uses a name that is not there (got 'x')\n  hint: the names are a, b"),
        ("a * 2", ["a", "b"], "does not use 'b'\n  hint: use it, or take it out of `of`"),
    ],
)
def test_the_names_of_a_formula_are_those_of_its_rewards(formula: str, names: list[str], told: str) -> None:
    with pytest.raises(OptionError) as raised:
        check_names(parse(formula), names)
    assert str(raised.value) == f"the formula {told}"


def test_a_part_may_not_be_called_like_a_function_or_a_word_of_the_language() -> None:
    for name in ("min", "lambda"):
        with pytest.raises(OptionError, match=f"'{name}' means something else in a formula"):
            check_names(parse("a"), ["a", name])


def test_expression_keeps_the_contract() -> None:
    check_reward(
        build_reward(
            "expression",
            {
                "formula": "exp(turned) * symmetry - 0.2 * max(twice, -3)",
                "of": {
                    "turned": {"use": "rotation"},
                    "symmetry": None,
                    "twice": {"use": "expression", "formula": "2 * x", "of": {"x": {"use": "rotation", "angle": 90}}},
                },
            },
        )
    )


def test_it_is_the_arithmetic_of_the_rewards_scores() -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = [""] * 3
    parts = {"a": {"use": "symmetry"}, "b": {"use": "jpeg", "quality": 30}}
    whole = draft.load("expression", formula="a**2 - 0.3 * b / (1 + a)", of=parts)(images, prompts)
    a, b = draft.load("symmetry")(images, prompts), draft.load("jpeg", quality=30)(images, prompts)
    torch.testing.assert_close(whole, a**2 - 0.3 * b / (1 + a))
    (found,) = torch.autograd.grad(whole.sum(), images)
    slope_a, slope_b = (torch.autograd.grad(score.sum(), images)[0] for score in (a, b))
    by_a, by_b = ((2 * a + 0.3 * b / (1 + a) ** 2), -0.3 / (1 + a))
    wanted = by_a.view(3, 1, 1, 1) * slope_a + by_b.view(3, 1, 1, 1) * slope_b
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    half = draft.load("expression", formula="a - b", of=parts)(images.bfloat16(), prompts)
    assert half.dtype == torch.bfloat16


def test_all_that_is_wrong_with_its_rewards_comes_at_once_with_its_line(tmp_path: Path) -> None:
    parts = "          a: {use: clip_score, text: a cat}\n          b: {use: jpeg}\n"
    wrong = (
        "          a:\n            use: jpeg\n            quality: 500\n            qualty: 3\n"
        "          b: {use: jepg}\n          c d: {use: jpeg}\n          e: {use: jpeg, weight: 2}\n          f: 3\n"
    )
    assert refused(tmp_path, (parts, wrong), ("relu(a) - 0.3 * b", "a <")) == [
        "demo.yaml:10: the formula cannot be read: invalid syntax (got 'a <')\n  hint: it may have numbers, names, "
        "+ - * / **, brackets, and min, max, abs, exp, log, sqrt, sigmoid, relu, clamp",
        "demo.yaml:14: stages.train.rewards.fit.of.a.quality must be at most 99 (got 500)",
        "demo.yaml:15: reward 'jpeg' has no option 'qualty'\n  hint: did you mean 'quality'?",
        "demo.yaml:16: unknown reward (got 'jepg')\n  hint: did you mean 'jpeg'?",
        "demo.yaml:17: a part's name must be a letter or _, then letters, digits and _ (got 'c d')",
        "demo.yaml:18: 'weight' belongs to a whole term, not to a part of one\n"
        "  hint: drop it; the reward that contains it decides how it counts",
        "demo.yaml:19: stages.train.rewards.fit.of.f must be a mapping of a reward's options (got 3)",
    ]
    assert refused(tmp_path, ("- 0.3 * b", "- c")) == [
        "demo.yaml:8: the formula uses a name that is not there (got 'c')\n  hint: the names are a, b"
    ]
    assert refused(tmp_path, (f"        of:\n{parts}", "        of: {}\n"))[0].startswith(
        "demo.yaml:11: stages.train.rewards.fit.of must be a mapping of names to rewards (got {})"
    )
    column = refused(tmp_path, ("text: a cat", 'text: "{thing}"'))
    assert "fit.of.a.text names the column 'thing', which the prompts do not have" in column[0]


def test_a_reward_without_gradient_is_refused_by_name_and_line_wherever_it_is(tmp_path: Path) -> None:
    hint = "measure it in an evaluate stage instead, or train by ddpo or best_of_n"
    plain = ("b: {use: jpeg}", "b: {use: jpeg_size}")
    assert refused(tmp_path, plain) == [
        f"demo.yaml:13: reward 'jpeg_size' has no gradient, so draft_lv cannot train for it\n  hint: {hint}"
    ]
    inner = "b: {use: expression, formula: x + y, of: {x: {use: owlvit_count}, y: {use: jpeg}}}"
    nested = ("b: {use: jpeg}", inner)
    assert "reward 'owlvit_count' has no gradient" in refused(tmp_path, nested)[0]
    reward = build_reward(
        "expression", {"formula": "1 - kb", "of": {"kb": {"use": "jpeg_size"}}}, where="rewards.small"
    )
    assert not reward.differentiable
    assert [(keys, part.name) for keys, part in without_gradient(reward)] == [(("of", "kb"), "jpeg_size")]
    with pytest.raises(DraftError, match=r"reward 'small.of.kb': jpeg_size has no gradient, so it cannot train"):
        check_terms([Term("small", reward)])
    check_terms([Term("small", reward, 0.0), Term("jpeg", build_reward("jpeg", {}))])
    logged = ("      fit:\n", "      jpeg:\n      fit:\n        weight: 0\n")
    watched = loaded(tmp_path, plain, logged)
    assert watched.stages["train"].terms[1].weight == 0, "logged, not trained for"
    metric = reward.load(torch.device("cpu"))(torch.rand(2, 3, 16, 16), ["", ""])
    assert metric.shape == (2,) and (metric < 1).all()


def test_what_depends_on_the_batch_makes_the_whole_depend_on_it() -> None:
    parts = {"a": {"use": "symmetry"}, "b": {"use": "diversity", "features": "pixels"}}
    reward = build_reward("expression", {"formula": "a * b", "of": parts})
    assert not reward.per_image
    assert reward.differentiable
    check_reward(reward)
    assert Expression(formula="a", of={"a": parts["a"]}).per_image  # type: ignore[arg-type]


def test_a_rehearsal_replaces_the_models_of_its_rewards_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = "b: {use: expression, formula: 2 * d, of: {d: {use: owlvit, queries: [cat]}, clip_score: }}"
    nested = ("b: {use: jpeg}", inner.replace("2 * d", "2 * d - clip_score"))
    pipeline = loaded(tmp_path, nested, rehearse=True)
    (reward,) = (term.reward for term in pipeline.stages["train"].terms)
    models = {".".join(keys): getattr(part, "model", None) for keys, part in walk_reward(reward)}
    assert models == {
        "": None,
        "of.a": "emoji/clip",
        "of.b": None,
        "of.b.of.d": "emoji/owlvit",
        "of.b.of.clip_score": "emoji/clip",
    }
    replaced = {each.key: each.after for each in pipeline.replacements}
    assert replaced["stages.train.rewards.fit.of.a.model"] == "emoji/clip"
    own = "rehearsal:\n  stages.train.rewards.fit.of.a.model: emoji/preference\n"
    (reward,) = (term.reward for term in loaded(tmp_path, add=own, rehearse=True).stages["train"].terms)
    assert dict(walk_reward(reward))["of", "a"].model_dump()["model"] == "emoji/preference"
    monkeypatch.setattr(OwlvitCount, "stand_in", None)
    evaluate_stage = ("kind: train", "kind: evaluate")
    (told,) = refused(tmp_path, evaluate_stage, ("b: {use: jpeg}", "b: {use: owlvit_count}"), rehearse=True)
    assert "reward 'owlvit_count' has no stand-in, so it cannot be rehearsed" in told
    assert "set stages.train.rewards.fit.of.b.model under `rehearsal:`" in told


def test_the_fingerprint_sees_options_sources_and_models_of_all_its_rewards(tmp_path: Path) -> None:
    def made(*swaps: tuple[str, str]) -> dict[str, Any]:
        return identity(loaded(tmp_path, *swaps).stages["train"], {})

    plain = made()
    assert sorted(plain["packages"]) == ["fit", "fit.of.a", "fit.of.b"]
    assert len({package["code"] for package in plain["packages"].values()}) == 3
    assert plain["rewards"]["fit"]["of"]["b"] == {"use": "jpeg", "quality": 50, "rounding": "exact"}, "defaults count"
    assert made(("{use: jpeg}", "{use: jpeg, quality: 50}")) == plain
    assert made(("{use: jpeg}", "{use: jpeg, quality: 51}")) != plain
    other = made(("{use: jpeg}", "{use: symmetry}"))
    assert other["packages"]["fit.of.b"] != plain["packages"]["fit.of.b"]
    assert other["packages"]["fit"] == plain["packages"]["fit"]
    embedded = made(("{use: clip_score,", "{use: clip_score, model: emoji/clip,"))
    assert list(embedded["reward_models"]) == ["fit.of.a.model"]
    term = loaded(tmp_path).stages["train"].terms[0]
    config = reward_config(term)
    again = build_reward(config.pop("use"), {key: value for key, value in config.items() if key != "weight"})
    assert again == term.reward


def test_a_part_that_changes_the_images_in_place_is_refused_by_name() -> None:
    class Scribbling(draft.Reward):
        """A reward that works in place."""

        name = "scribbling"

        def load(self, device: torch.device) -> Any:
            return lambda images, prompts: images.detach().mul_(0.5).mean(dim=(1, 2, 3))

    reward = Expression.model_validate({"formula": "a + b", "of": {"a": Scribbling(), "b": {"use": "jpeg_size"}}})
    with pytest.raises(draft.DraftError, match="the reward 'a' of an expression changed the images in place"):
        reward.load(torch.device("cpu"))(torch.rand(1, 3, 16, 16), [""])
