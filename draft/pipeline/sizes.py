"""How small the settings of a stage become in a rehearsal, by the marks of their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from draft.marks import AtMost, First, Instead, ShareOf, Within
from draft.pipeline.document import Keys
from draft.pipeline.fields import Place


def sizes(
    places: Sequence[Place], chosen: Callable[[Keys], bool], full_size: Sequence[Place] = ()
) -> dict[Keys, tuple[Any, Any]]:
    """What becomes smaller.

    Args:
        places: All values of a stage's settings.
        chosen: Whether somebody chose the value at a place for this rehearsal, so that it stays.
        full_size: All values of the stage at full size, of which some were replaced before; nothing: `places`.

    Returns:
        Place to the value and the smaller one, of those that change.
    """
    now, before = _by_keys(places), _by_keys(full_size or places)
    changes = {place.keys: (place.value, _small(place, now, before, chosen)) for place in places}
    return {keys: (old, new) for keys, (old, new) in changes.items() if old != new}


def _small(
    place: Place, now: Mapping[Keys, Place], before: Mapping[Keys, Place], chosen: Callable[[Keys], bool]
) -> Any:
    value = place.value
    if chosen(place.keys):
        return value

    def other(key: str) -> tuple[Any, Any]:
        """Another setting, before and in the rehearsal: the nearest of that key; None twice where there is none."""
        for length in reversed(range(len(place.keys))):
            keys = (*place.keys[:length], *key.split("."))
            if keys in now:
                return before.get(keys, now[keys]).value, _small(now[keys], now, before, chosen)
        return None, None

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
                beside = now.get((*place.keys[:-1], above))
                return min(value, max(bound, len(beside.value) + 1) if beside else bound)
            case ShareOf(of=of, least=least):
                full, small = other(of)
                return max(least, round(value * (small / full)))
            case Within(of=of):
                _, length = other(of)
                return value if length is None or value < length else max(1, length // 4)
    return value


def _by_keys(places: Sequence[Place]) -> dict[Keys, Place]:
    return {place.keys: place for place in places}
