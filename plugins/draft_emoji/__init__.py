"""The embedded world: a small text-to-image model trained on emoji, its CLIP and its judge.

Importing this package reads nothing and imports no torch.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the shipped weights: ``text_to_image/``, ``clip/`` and ``judge/``."""

__all__ = ["WEIGHTS"]
