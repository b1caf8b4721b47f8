"""Numbers as text: a handful of digits, a true minus sign, a dash for what is no number."""

from __future__ import annotations

import math

NONE = "–"
"""What is written where there is no number."""


def number(value: float) -> str:
    """A score in about four characters that count: `0.2731`, `12.3`, `1.2e+06`; a dash for NaN.

    Args:
        value: Any float.

    Returns:
        Text with a true minus sign.

    Example:
        >>> number(12.345), number(float("nan"))
        ('12.35', '–')
    """
    if not math.isfinite(value):
        return NONE
    size = abs(value)
    if size != 0 and (size >= 1e5 or size < 1e-4):
        text = f"{value:.1e}"
    else:
        text = f"{value:.{4 if size < 1 else 3 if size < 10 else 2 if size < 1000 else 0}f}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """A difference: as `number`, with a plus sign where it is positive."""
    return f"+{number(value)}" if value > 0 else number(value)


def mean_and_deviation(mean: float, deviation: float) -> str:
    """A mean with its spread to as many places: `45.90 ± 0.21`; the mean alone where there is no spread.

    Args:
        mean: The mean.
        deviation: Its standard deviation; NaN where there is none.

    Returns:
        Text.
    """
    text = number(mean)
    if math.isnan(deviation):
        return text
    places = len(text.partition(".")[2])
    return f"{text} ± {number(deviation) if 'e' in text else format(deviation, f'.{places}f')}"
