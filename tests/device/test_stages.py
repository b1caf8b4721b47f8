"""Every kind of stage runs on an accelerator, and so do half precision, recomputed activations and a resumed training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from draft.testing import pretended_accelerator

SAMPLING: dict[str, dict[str, Any]] = {
    "guided": {"weight": 0.1},
    "noise_opt": {"iterations": 1},
    "prompt_search": {"budget": 2},
}
"""Each method that raises a reward while sampling, to what makes it quick."""
