"""How small the settings of a stage become in a rehearsal, by the marks of their fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from draft.marks import AtMost, First, Instead, ShareOf, Within
from draft.pipeline.document import Keys
from draft.pipeline.fields import Place


def sizes(places: Sequence[Place], chosen: Callable[[Keys], bool]) -> dict[Keys, tuple[Any, Any]]:
    """What becomes smaller.

    Args:
        places: All values of a stage's settings.
        chosen: Whether somebody chose the value at a place for this rehearsal, so that it stays.

    Returns:
        Place to the value and the smaller one, of those that change.
    """
    by_keys = {place.keys: place for place in places}
    changes = {place.keys: (place.value, _small(place, by_keys, chosen)) for place in places}
    return {keys: (before, after) for keys, (before, after) in changes.items() if before != after}


def _small(place: Place, by_keys: dict[Keys, Place], chosen: Callable[[Keys], bool]) -> Any:
    value = place.value
    if chosen(place.keys):
        return value

    def other(key: str) -> tuple[Any, Any]:
        """Another setting of the stage, before and in the rehearsal; None twice where there is no such setting."""
        setting = by_keys.get(tuple(key.split(".")))
        return (None, None) if setting is None else (setting.value, _small(setting, by_keys, chosen))

    for mark in place.marks:
        match mark:
            case Instead(value=instead, keep=keep):
                return value if value in keep else instead
            case First(count=count):
                return value[:count]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    for mark in place.marks:
        match mark:
            case AtMost(limit=limit, above=above):
                bound = limit if isinstance(limit, int | float) else other(limit)[1]
                beside = by_keys.get((*place.keys[:-1], above))
                return min(value, max(bound, len(beside.value) + 1) if beside else bound)
            case ShareOf(of=of, least=least):
                before, after = other(of)
                return max(least, round(value * (after / before)))
            case Within(of=of):
                _, length = other(of)
                return value if length is None or value < length else max(1, length // 4)
    return value
