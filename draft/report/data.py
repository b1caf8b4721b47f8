"""Results as JSON and CSV, and the versions that made them."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from draft.report.withheld import without_withheld

_PACKAGES = {"draft": "draft-diffusion", "torch": "torch", "diffusers": "diffusers", "peft": "peft"}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on, by name."""
    return {"python": platform.python_version()} | {name: _version(package) for name, package in _PACKAGES.items()}


def with_origin(values: Mapping[str, Any], config_text: str) -> dict[str, Any]:
    """Results with what made them, as the last entries.

    Args:
        values: The results.
        config_text: The pipeline's configuration, kept as text.

    Returns:
        The results, `versions` and `config`.
    """
    return {**values, "versions": versions(), "config": config_text}


def as_json(value: Any, *, indent: int = 2) -> str:
    """Plain values as JSON text, the same for the same values; numbers that are not finite become null.

    Args:
        value: Mappings, sequences, text, numbers and None.
        indent: Spaces per level.

    Returns:
        Text that ends with a line break.
    """
    return json.dumps(without_withheld(finite(value)), indent=indent, ensure_ascii=False) + "\n"


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV text.

    Args:
        header: The columns' names.
        rows: The lines, each as long as the header.

    Returns:
        Text whose lines end with a line feed.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(map(without_withheld, rows))
    return stream.getvalue()


def finite(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinity: they become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
