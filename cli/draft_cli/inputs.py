"""What a command line says about adapters that go in: files with weights, and factors of parts and blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from draft.adapters.hub import local_path
from draft.adapters.strength import Strength
from draft.errors import ConfigError, did_you_mean

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf)", re.IGNORECASE)


def parse_factors(texts: Sequence[str], option: str, *, command: str = "draft mix") -> dict[str, float]:
    """Split `pattern=factor` texts at their last equals sign.

    Args:
        texts: For example `up_blocks.*=0.5`.
        option: The option's name, for errors.
        command: The command, for errors.

    Returns:
        Factor by pattern.

    Raises:
        ConfigError: No pattern, no finite number, or a pattern twice.
    """
    factors: dict[str, float] = {}
    for text in texts:
        pattern, _, number = text.rpartition("=")
        where = f"{command}, --{option} {text!r}"
        if not pattern or not _NUMBER.fullmatch(number) or not math.isfinite(float(number)):
            raise ConfigError(
                f"a {option} needs a pattern and a number (got {text!r})",
                where=command,
                hint=(f"--{option} '{'text_encoder*' if option == 'component' else 'up_blocks.*'}=0.5'"),
            )
        if pattern in factors:
            raise ConfigError(f"the pattern {pattern!r} is there twice", where=where)
        factors[pattern] = float(number)
    return factors


def parse_blocks(
    texts: Sequence[str], inputs: Sequence[tuple[Path, Strength]], *, command: str = "draft mix"
) -> tuple[dict[str, float], list[tuple[Path, Strength]]]:
    """Sort factors of blocks into those of the whole mix and those of one input: `a:up_blocks.*=0.5`.

    Args:
        texts: The options' values. What is before the last colon of a pattern is an input: its number, from 1 on, or
            its file's name without ending.
        inputs: The inputs.
        command: The command, for errors.

    Returns:
        Factor by pattern for all inputs, and the inputs with their own factors.

    Raises:
        ConfigError: As from `parse_factors`, or there is no such input, or several of that name.
    """
    whole: list[str] = []
    single: dict[int, list[str]] = {}
    for text in texts:
        name, colon, pattern = text.rpartition(":")
        if colon:
            single.setdefault(_input_named(name, inputs, where=f"{command}, --block {text!r}"), []).append(pattern)
        else:
            whole.append(text)
    own_blocks = {index: parse_factors(patterns, "block", command=command) for index, patterns in single.items()}
    strengths = [
        (path, replace(strength, blocks=own_blocks.get(index, {}))) for index, (path, strength) in enumerate(inputs)
    ]
    return parse_factors(whole, "block", command=command), strengths


def _input_named(name: str, inputs: Sequence[tuple[Path, Strength]], *, where: str) -> int:
    names = [path.stem or path.name for path, _ in inputs]
    listed = ", ".join(f"{number} is {known}" for number, known in enumerate(names, 1))
    if name.isascii() and name.isdigit():
        if not 1 <= int(name) <= len(names):
            raise ConfigError(f"there is no input {name} (got {len(names)})", where=where, hint=listed)
        return int(name) - 1
    if names.count(name) > 1:
        raise ConfigError(f"several inputs are named {name!r}", where=where, hint=f"give its number: {listed}")
    if name not in names:
        hint = did_you_mean(name, names, otherwise=f"the inputs: {listed}")
        raise ConfigError(f"no input is named {name!r}", where=where, hint=hint)
    return names.index(name)


def parse_input(text: str, *, command: str = "draft mix") -> tuple[Path, Strength]:
    """Split `path:weight` or `path:weight:weight` at the last colons, if numbers follow them.

    Args:
        text: For example `a.safetensors:0.7`, `a.safetensors:0.7:0.3` with 0.3 for text encoders, `a.safetensors`,
            `C:\\x.safetensors:-0.5`, or an address on the hub, `hf://org/repo/file.safetensors@revision:0.5`, which is
            downloaded into its cache.
        command: The command, for errors.

    Returns:
        The path and its strength, 1.0 where there is none.

    Raises:
        ConfigError: No path, a weight that is no finite number, or too many of them.
    """
    path, numbers = text, list[str]()
    while len(numbers) < 2:
        head, _, tail = path.rpartition(":")
        if not head or not _NUMBER.fullmatch(tail):
            break
        path, numbers = head, [tail, *numbers]
    where = f"{command}, {text!r}"
    if not path.strip():
        raise ConfigError(f"an input needs a path (got {text!r})", where=command)
    for number in numbers:
        if not math.isfinite(float(number)):
            raise ConfigError(f"a weight must be a finite number (got {number})", where=where)
    _, colon, tail = path.rpartition(".safetensors:")
    if colon and not tail.endswith(".safetensors") and not {"/", "\\"} & set(tail):
        if len(numbers) == 2:
            what = f"an input has at most two weights, of its denoiser and of its text encoders (got {tail}, "
            raise ConfigError(f"{what}{', '.join(numbers)})", where=where)
        raise ConfigError(f"a weight must be a number (got {tail!r})", where=where)
    strength = Strength(float(numbers[0])) if numbers else Strength()
    return local_path(path), replace(strength, text_encoder=float(numbers[1])) if len(numbers) == 2 else strength
