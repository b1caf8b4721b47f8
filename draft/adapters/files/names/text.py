"""A text encoder's module paths: CLIP's and T5's, as transformers names them."""

from __future__ import annotations

import re

# Only with the vocabulary of its module paths can a name that writes "." as "_" be read back.
_CLIP = re.compile(
    r"(text_model|text_projection|encoder|layers|self_attn|q_proj|k_proj|v_proj|out_proj|mlp|fc1|fc2|\d+)(?:_|$)"
)
_T5 = re.compile(r"(encoder|block|layer|SelfAttention|DenseReluDense|wi_0|wi_1|wi|wo|q|k|v|o|\d+)(?:_|$)")
_OLD = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def text_path(name: str) -> str | None:
    """The path of a text encoder's module.

    Args:
        name: kohya's name without its prefix, `_` for `.`: `text_model_encoder_layers_0_mlp_fc1` of CLIP,
            `encoder_block_0_layer_0_SelfAttention_q` of T5.

    Returns:
        The dotted path, or None if the name is not of a text encoder's module.
    """
    path = dotted(name, _T5) if name.startswith("encoder_block_") else dotted(name, _CLIP)
    return None if path is None else canonical_text(path)


def canonical_text(path: str, *, compact: bool = False) -> str:
    """The one way to write a text encoder's path.

    Args:
        path: A dotted path.
        compact: Whether it is the old attention processors', which say `to_q` for `q_proj`.

    Returns:
        The path, with the `text_model.` level that transformers 5 dropped and every file before it has.
    """
    if compact:
        head, _, last = path.rpartition(".")
        path = f"{head}.{_OLD.get(last, last)}"
    return f"text_model.{path}" if path.startswith("encoder.layers.") else path


def is_t5(path: str) -> bool:
    """Whether a text encoder's module is one of T5's."""
    return path.startswith("encoder.block.")


def dotted(name: str, grammar: re.Pattern[str]) -> str | None:
    """Turn an underscored name into a dotted path, word by word.

    Args:
        name: The name.
        grammar: Matches one word, group 1, and the underscore behind it.

    Returns:
        The path, or None where a word is foreign.
    """
    words: list[str] = []
    position = 0
    while position < len(name):
        match = grammar.match(name, position)
        if match is None:
            return None
        words.append(match[1])
        position = match.end()
    return ".".join(words) if words and not name.endswith("_") else None
