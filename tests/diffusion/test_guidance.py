"""Guidance as each family combines it, against its formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import FAMILIES
from draft.diffusion.families.problems import family_problems, require_family_settings, size_problems
from draft.diffusion.guidance import guide, has_two_branches
from draft.diffusion.settings import SamplerSettings
from draft.errors import StageError
from draft.family import Family

PROMPTS = Conditioning({"text": torch.tensor([[1.0], [-2.0]]).double()})
BLANK = Conditioning({"text": torch.tensor([[0.5]]).double()})


class Net:
    """out = sin(text x), plus the guidance it is given; keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def __call__(self, x: Tensor, time: Tensor, c: Conditioning) -> Tensor:
        self.calls.append((len(x), tuple(c.tensors)))
        text = c.tensors["text"].reshape(-1, *[1] * (x.dim() - 1))
        out = (text * x).sin()
        if "guidance" in c.tensors:
            out = out + c.tensors["guidance"].reshape(-1, *[1] * (x.dim() - 1))
        return out


def guided(toys: Any, net: Net, rule: Any, scale: float, x: Tensor, **options: Any) -> Tensor:
    return guide(net, toys.toy_grid(3), PROMPTS, BLANK, scale, rule=rule, **options)(x, 0)


@pytest.fixture
def x(toys) -> Tensor:
    return toys.noise(2, 4, 6, 8)


@pytest.fixture
def branches(x: Tensor) -> tuple[Tensor, Tensor]:
    return (0.5 * x).sin(), (PROMPTS.tensors["text"].reshape(2, 1, 1, 1) * x).sin()


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_classifier_free_guidance_starts_from_the_unconditional_branch(toys, x, branches, scale: float) -> None:
    u, c = branches
    torch.testing.assert_close(guided(toys, Net(), "classifier_free", scale, x), u + scale * (c - u))


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_one_plus_guidance_starts_from_the_conditional_branch(toys, x, branches, scale: float) -> None:
    u, c = branches
    torch.testing.assert_close(guided(toys, Net(), "one_plus", scale, x), c + scale * (c - u))


@pytest.mark.parametrize("patch", [1, 2])
def test_rescaled_guidance_keeps_the_norm_of_every_token(toys, x, branches, patch: int) -> None:
    u, c = branches
    out, plain = guided(toys, Net(), "norm_rescaled", 4.0, x, patch=patch), u + 4.0 * (c - u)
    for b in range(2):
        for top in range(0, 6, patch):
            for left in range(0, 8, patch):
                place = (b, slice(None), slice(top, top + patch), slice(left, left + patch))
                wanted = plain[place] * (c[place].norm() / plain[place].norm())
                torch.testing.assert_close(out[place], wanted)


def test_tokens_of_a_video_are_its_frames_tokens(toys) -> None:
    x = toys.noise(2, 4, 3, 4, 4)
    out = guided(toys, Net(), "norm_rescaled", 3.0, x, patch=2)
    for frame in range(3):
        torch.testing.assert_close(out[:, :, frame], guided(toys, Net(), "norm_rescaled", 3.0, x[:, :, frame], patch=2))


def test_embedded_guidance_is_an_input_of_one_call(toys, x, branches) -> None:
    net = Net()
    torch.testing.assert_close(guided(toys, net, "embedded", 3.5, x), branches[1] + 3.5)
    assert net.calls == [(2, ("text", "guidance"))]
    torch.testing.assert_close(guided(toys, net, "embedded", 3.5, x.repeat(2, 1, 1, 1))[2:], branches[1] + 3.5)


def test_without_guidance_the_prompts_branch_alone_is_computed(toys, x, branches) -> None:
    for rule, scale in (("none", 1.0), ("classifier_free", 1.0), ("norm_rescaled", 1.0), ("one_plus", 0.0)):
        net = Net()
        torch.testing.assert_close(guided(toys, net, rule, scale, x), branches[1])
        assert net.calls == [(2, ("text",))], rule
        assert not has_two_branches(rule, scale)  # type: ignore[arg-type]


def test_gradient_off_is_without_guidance_whatever_the_rule(toys, x, branches) -> None:
    for rule in ("classifier_free", "one_plus", "norm_rescaled", "none"):
        torch.testing.assert_close(guided(toys, Net(), rule, 3.0, x, gradient="off"), branches[1])
    torch.testing.assert_close(guided(toys, Net(), "embedded", 3.0, x, gradient="off"), branches[1] + 1.0)


def _family(guidance: Any) -> Family:
    return Family(name="toy", title="Toy", pipeline="ToyPipeline", part="transformer", guidance=guidance)


def _found(guidance: Any, cfg_gradient: str = "both", **sampler: Any) -> list[str]:
    settings = SamplerSettings(**{"guidance_scale": 1.0, **sampler})
    return [problem.what for problem in family_problems(_family(guidance), settings, cfg_gradient=cfg_gradient)]


def test_what_only_a_diffusion_schedule_has_is_a_problem_of_a_flow() -> None:
    sampler = SamplerSettings(guidance_scale=1.0, final="first_alpha", spacing="leading")
    diffusion = _family("classifier_free")
    assert list(family_problems(diffusion, sampler)) == []
    assert [problem.what for problem in family_problems(replace(diffusion, schedule="flow"), sampler)] == [
        "sampler.final must be 'one' for a flow-matching model (got 'first_alpha')",
        "sampler.spacing must be 'trailing' or 'linspace' for a flow-matching model (got 'leading')",
    ]


def test_guidance_that_a_family_lacks_is_a_problem() -> None:
    assert _found("none") == _found("embedded", guidance_scale=3.5) == _found("one_plus", guidance_scale=0.0) == []
    assert _found("none", guidance_scale=7.5) == [
        "sampler.guidance_scale must be 1 for Toy, which has no guidance (got 7.5)"
    ]
    for guidance in ("classifier_free", "norm_rescaled"):
        assert _found(guidance, guidance_scale=0.5) == ["sampler.guidance_scale must be at least 1 for Toy (got 0.5)"]
    for guidance in ("none", "embedded"):
        assert _found(guidance, negative_prompt="ugly", cfg_gradient="detached") == [
            "sampler.negative_prompt has no effect with Toy, which is not called with one",
            "cfg_gradient has no effect with Toy, which has no second branch (got detached)",
        ]
    with pytest.raises(StageError, match=r"must be at least 1 for Stable Diffusion 1.x and 2.x \(got 0.5\)"):
        require_family_settings(FAMILIES[0], SamplerSettings(guidance_scale=0.5))


def test_a_size_that_the_autoencoder_cannot_decode_names_the_multiple(tiny_folders, tmp_path) -> None:
    model = str(tiny_folders["epsilon"])
    assert not [*size_problems(model, None), *size_problems(model, 18), *size_problems(model, (16, 18))]
    (problem,) = size_problems(model, 17)
    assert (problem.what, problem.hint) == (
        "resolution must be a multiple of 2 for this model (got 17)",
        "for example 16 or 18",
    )
    (problem,) = size_problems(model, (16, 17))
    assert problem.what == "resolution must be a multiple of 2 for this model (got [16, 17])"
    assert problem.hint == "for example [16, 16] or [16, 18]"
    file = tmp_path / "one.safetensors"
    file.write_bytes(b"")
    assert [p.what for p in size_problems(str(file), 100)] == [
        "resolution must be a multiple of 8 for this model (got 100)"
    ]
    assert not list(size_problems("owner/name", 17))


def test_the_norms_of_a_token_that_vanishes_do_not_make_numbers_out_of_nothing(toys) -> None:
    x = torch.zeros(2, 4, 2, 2, dtype=torch.float64)
    x.requires_grad_()
    out = guided(toys, Net(), "norm_rescaled", 3.0, x)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()
