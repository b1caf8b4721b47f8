"""Tokenizers of transformers, refused where they would read all texts alike; imports transformers when called."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from draft.errors import DraftError

_PROBES = (*string.ascii_lowercase, *string.digits)
"""Texts of one length: a tokenizer that knows none of their letters gives all of them the same tokens."""


def tokenizer_class(name: str) -> Any:
    """A class of transformers by its name without `Fast`: the fast one, which version 5 calls by the plain name."""
    import transformers

    return getattr(transformers, f"{name}Fast", None) or getattr(transformers, name)


def load_tokenizer(name: str, source: str, *, of: str, where: str = "", fetch: str = "", **options: Any) -> Any:
    """Load a tokenizer and check it: where files are missing, transformers makes one without a vocabulary.

    Args:
        name: The class in transformers, without `Fast`: ``"CLIPTokenizer"``, ``"AutoTokenizer"``.
        source: A folder or a hub id.
        of: Whose tokenizer it is, for the error: ``"the CLIP model 'emoji/clip'"``.
        where: The place of the error.
        fetch: The command that brings the files here, for the error; empty: nobody knows one.
        **options: Of `from_pretrained`.

    Returns:
        The tokenizer.

    Raises:
        DraftError: It has no vocabulary, or gives different texts the same tokens.
        ValueError: Its file is damaged.
    """
    try:
        tokenizer = tokenizer_class(name).from_pretrained(source, **options)
    except (OSError, ImportError):
        raise
    except Exception as error:
        # Of a damaged file transformers raises whatever comes, and the library tokenizers a plain Exception.
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ValueError(f"its tokenizer cannot be read ({type(error).__name__}: {reason})") from error
    check_tokenizer(tokenizer, source, of=of, where=where, fetch=fetch)
    return tokenizer


def check_tokenizer(tokenizer: Any, source: str, *, of: str, where: str = "", fetch: str = "") -> None:
    """Refuse a tokenizer without a vocabulary, and one that gives different texts the same tokens.

    Args:
        tokenizer: A tokenizer of transformers.
        source: The folder or hub id it was loaded from.
        of: Whose tokenizer it is, for the error.
        where: The place of the error.
        fetch: The command that brings the files here, for the error; empty: nobody knows one.

    Raises:
        DraftError: It is such a one, out of a folder.
        FileNotFoundError: It is such a one, out of a hub's repository whose files are not here.
    """
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if words and len({tuple(tokenizer(text)["input_ids"]) for text in _PROBES}) > 1:
        return
    names = dict.fromkeys(["tokenizer.json", *tokenizer.vocab_files_names.values()])
    files = ", or ".join(filter(None, ["tokenizer.json", " and ".join(n for n in names if n != "tokenizer.json")]))
    if not Path(source).is_dir():
        raise FileNotFoundError(f"its tokenizer is not on this machine: {files}")
    why = "gives different texts the same tokens" if words else "has no vocabulary, so it reads all prompts alike"
    present = [name for name in names if (Path(source) / name).is_file()]
    found = f"{', '.join(present)} in {source} cannot be right" if present else f"{source} lacks {files}"
    copy = f"copy {files}, with tokenizer_config.json into that folder from where the model came from"
    raise DraftError(
        f"the tokenizer of {of} {why}: {found}",
        where=where,
        hint=f"{copy}, or fetch it with `{fetch}`" if fetch else copy,
    )
