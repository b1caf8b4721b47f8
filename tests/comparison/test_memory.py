"""The peak of memory can be forgotten and is then that of what follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from draft.comparison.memory import held_memory, peak_memory, restart_peak

CPU = torch.device("cpu")
MEGABYTE = 2**20


def peak_of(megabytes: int) -> float:
    """The peak, in MB above what was held, of a tensor that is gone again."""
    held = held_memory(CPU)
    restart_peak(CPU)
    torch.ones(megabytes * MEGABYTE // 4)
    peak = peak_memory(CPU)
    assert held is not None and peak is not None
    return (peak - held) / MEGABYTE


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_a_small_peak_is_seen_after_a_large_one() -> None:
    assert peak_of(256) == pytest.approx(256, abs=32)
    assert peak_of(64) == pytest.approx(64, abs=32)
