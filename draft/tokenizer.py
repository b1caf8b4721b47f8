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
    kind = tokenizer_class(name)
    try:
        tokenizer = kind.from_pretrained(source, **options)
    except OSError:
        raise
    except Exception as error:
        cause = _cause(error)
        # Where version 5 makes a tokenizer without a vocabulary, version 4 raises whatever comes.
        files = _vocabulary_files(kind, source)
        if files and not _present(files, source, options.get("revision")):
            raise _unusable(files, source, words=False, of=of, where=where, fetch=fetch) from cause
        if isinstance(cause, ImportError):
            raise
        # Of a damaged file transformers raises whatever comes, and the library tokenizers a plain Exception.
        reason = (str(cause).strip().splitlines() or ["no reason given"])[0]
        raise ValueError(f"its tokenizer cannot be read ({type(cause).__name__}: {reason})") from cause
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
    names = list(dict.fromkeys(["tokenizer.json", *tokenizer.vocab_files_names.values()]))
    raise _unusable(names, source, words=bool(words), of=of, where=where, fetch=fetch)


def _unusable(names: list[str], source: str, *, words: bool, of: str, where: str, fetch: str) -> Exception:
    """The error of a tokenizer without a vocabulary or, with `words`, of one that gives different texts the same."""
    files = ", or ".join(filter(None, ["tokenizer.json", " and ".join(n for n in names if n != "tokenizer.json")]))
    if not Path(source).is_dir():
        return FileNotFoundError(f"its tokenizer is not on this machine: {files}")
    why = "gives different texts the same tokens" if words else "has no vocabulary, so it reads all prompts alike"
    present = [name for name in names if (Path(source) / name).is_file()]
    found = f"{', '.join(present)} in {source} cannot be right" if present else f"{source} lacks {files}"
    copy = f"copy {files}, with tokenizer_config.json into that folder from where the model came from"
    return DraftError(
        f"the tokenizer of {of} {why}: {found}",
        where=where,
        hint=f"{copy}, or fetch it with `{fetch}`" if fetch else copy,
    )


def _cause(error: Exception) -> BaseException:
    """What went wrong before transformers 4, handling that, missed the protobuf that only some of its files need."""
    hidden = isinstance(error, ImportError) and "protobuf" in str(error) and error.__context__ is not None
    return error.__context__ or error if hidden else error


def _vocabulary_files(kind: Any, source: str) -> list[str]:
    """The files of a tokenizer's class, `tokenizer.json` first; none where it cannot be known which class it is."""
    if not hasattr(kind, "vocab_files_names"):
        from transformers import AutoConfig
        from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

        try:
            classes = TOKENIZER_MAPPING[type(AutoConfig.from_pretrained(source, local_files_only=True))]
        except (OSError, ValueError, KeyError):
            return []
        # Version 4 has a slow and a fast one, of which either may be missing.
        kind = next((one for one in reversed(classes) if one), None) if isinstance(classes, tuple) else classes
    return list(dict.fromkeys(["tokenizer.json", *getattr(kind, "vocab_files_names", {}).values()]))


def _present(names: list[str], source: str, revision: str | None) -> bool:
    """Whether a folder, or the hub's cache, has `tokenizer.json` or all the other files."""
    from huggingface_hub import try_to_load_from_cache

    def here(name: str) -> bool:
        if Path(source).is_dir():
            return (Path(source) / name).is_file()
        return isinstance(try_to_load_from_cache(source, name, revision=revision), str)

    return here("tokenizer.json") or (len(names) > 1 and all(here(name) for name in names[1:]))
