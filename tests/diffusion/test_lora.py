"""LoRA on the UNet: fresh, loaded, switched, read back."""

from __future__ import annotations

import pytest
import torch

from draft.diffusion.generate import generate_images
from draft.diffusion.lora import add_lora, load_lora, lora_factors, lora_parameters, use_lora
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DraftError

SAMPLER = SamplerSettings(num_inference_steps=2)


def _image(model) -> torch.Tensor:
    return next(generate_images(model, ["a"], [0], SAMPLER))


def test_a_fresh_lora_depends_on_its_seed_alone_and_leaves_the_global_generator(load) -> None:
    factors = []
    for seed in (1, 1, 2):
        model = load(dtype=torch.float32)
        before = torch.get_rng_state()
        torch.manual_seed(len(factors))
        add_lora(model.network, LoraSettings(rank=3), seed=seed)
        torch.set_rng_state(before)
        factors.append(lora_factors(model.network))
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = factors[0][path]
    assert a.shape == (3, 16) and b.shape == (16, 3) and not b.any() and a.abs().max() <= 0.25
    assert torch.equal(a, factors[1][path][0]) and not torch.equal(a, factors[2][path][0])
    assert all(path.endswith(("to_q", "to_k", "to_v", "to_out.0")) for path in factors[0])


def test_adapters_of_different_ranks_load_switch_and_scale(load) -> None:
    model = load(dtype=torch.float32)
    base = _image(model)
    generator = torch.Generator().manual_seed(0)
    paths = {
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16, 1),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0": (16, 16, 4),
    }
    factors = {
        path: (torch.randn(r, inner, generator=generator), torch.randn(outer, r, generator=generator))
        for path, (outer, inner, r) in paths.items()
    }
    load_lora(model.network, factors, name="a.b")
    load_lora(model.network, {path: (a, -b) for path, (a, b) in factors.items()}, name="minus")
    assert lora_parameters(model.network) == []
    back = lora_factors(model.network, "a.b")
    assert set(back) == set(factors)
    assert all(torch.equal(back[path][0], a) and torch.equal(back[path][1], b) for path, (a, b) in factors.items())
    use_lora(model.network, "a.b")
    tuned = _image(model)
    assert not torch.allclose(tuned, base, atol=1e-3)
    use_lora(model.network, "minus", -1.0)
    torch.testing.assert_close(_image(model), tuned)
    use_lora(model.network, "a.b", 0.0)
    torch.testing.assert_close(_image(model), base)
    use_lora(model.network, "a.b", 0.5)
    assert not torch.allclose(_image(model), base, atol=1e-4)
    use_lora(model.network, None)
    assert torch.equal(_image(model), base)
    # The merged weights are the definition of what an adapter does.
    use_lora(model.network, "a.b", 0.7)
    adapted = _image(model)
    plain = load(dtype=torch.float32)
    modules = dict(plain.network.named_modules())
    for path, (a, b) in factors.items():
        modules[path].weight.data += 0.7 * b @ a
    torch.testing.assert_close(adapted, _image(plain), rtol=0.0, atol=1e-5)


def test_switching_keeps_what_is_trained(load) -> None:
    model = load(dtype=torch.float32)
    add_lora(model.network, LoraSettings(rank=2), seed=0)
    parameters = lora_parameters(model.network)
    assert parameters and all(p.dtype == torch.float32 for p in parameters)
    use_lora(model.network, None)
    use_lora(model.network, "default")
    assert [id(p) for p in lora_parameters(model.network)] == [id(p) for p in parameters]


def test_what_does_not_fit_is_refused(load) -> None:
    model = load(dtype=torch.float32)
    with pytest.raises(DraftError, match="no module of the model ends with 'to_z'"):
        add_lora(model.network, LoraSettings(targets=("to_q", "to_z")), seed=0)
    with pytest.raises(DraftError, match="a module the model lacks: nowhere.to_q"):
        load_lora(model.network, {"nowhere.to_q": (torch.zeros(1, 2), torch.zeros(2, 1))}, name="x")
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    with pytest.raises(DraftError, match=r"does not fit .*: the model's weight is \(16, 16\) \(got \(16, 8\)\)"):
        load_lora(model.network, {path: (torch.zeros(1, 8), torch.zeros(16, 1))}, name="x")
    with pytest.raises(DraftError, match="there is no adapter 'x'"):
        use_lora(model.network, "x")
