"""Which modules a pattern means, and what it says when it means none."""

from __future__ import annotations

import pytest

from draft.adapters.selection import module_weights
from draft.errors import StageError

Q = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
K = "unet.up_blocks.10.attentions.0.transformer_blocks.0.attn2.to_k"
MID = "unet.mid_block.attentions.0.proj_in"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
SECOND = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
NAMES = (Q, K, MID, TEXT, SECOND)


@pytest.mark.parametrize(
    ("components", "blocks", "changed"),
    [
        ({}, {}, {}),
        ({"text_encoder": 0.5}, {}, {TEXT: 0.5}),
        ({"text_encoder*": 0.0}, {}, {TEXT: 0.0, SECOND: 0.0}),
        ({"*": 2.0, "unet": -1.0}, {}, {Q: -2.0, K: -2.0, MID: -2.0, TEXT: 2.0, SECOND: 2.0}),
        ({}, {"up_blocks.*": 0.5}, {Q: 0.5, K: 0.5}),
        ({}, {"up_blocks.1": 0.5}, {Q: 0.5}),
        ({}, {"unet.up_blocks.1": 0.5}, {Q: 0.5}),
        ({}, {"*.attn2": 0.0}, {K: 0.0}),
        ({}, {"*.fc1": 3.0}, {TEXT: 3.0, SECOND: 3.0}),
        ({}, {"up_blocks": 0.5, "*.to_q": 0.5}, {Q: 0.25, K: 0.5}),
        ({"unet": 3.0}, {"mid_block": 0.5}, {Q: 3.0, K: 3.0, MID: 1.5}),
    ],
)
def test_factors_of_all_patterns_that_match_multiply(
    components: dict[str, float], blocks: dict[str, float], changed: dict[str, float]
) -> None:
    assert module_weights(NAMES, components=components, blocks=blocks) == dict.fromkeys(NAMES, 1.0) | changed


@pytest.mark.parametrize(
    ("components", "blocks", "message"),
    [
        ({"txt_encoder": 0.0}, {}, "component 'txt_encoder'\n  hint: did you mean 'text_encoder'?"),
        ({"vae": 0.0}, {}, "component 'vae'\n  hint: the parts are text_encoder, text_encoder_2, unet"),
        ({}, {"up_block.*": 0.5}, "block 'up_block.*'\n  hint: did you mean 'up_blocks'?"),
        ({}, {"*.atn2": 0.5}, "block '*.atn2'\n  hint: did you mean 'attn2'?"),
        ({}, {"quux": 0.5}, f"block 'quux'\n  hint: one module is {Q}"),
        ({}, {"up_blocks": float("inf")}, "'up_blocks': the factor of a block must be a finite number (got inf)"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_a_guess(
    components: dict[str, float], blocks: dict[str, float], message: str
) -> None:
    with pytest.raises(StageError) as error:
        module_weights(NAMES, components=components, blocks=blocks)
    assert str(error.value).endswith(message)
