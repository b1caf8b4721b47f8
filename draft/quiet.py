"""What libraries report at every start and nobody can act on is dropped; imports no library before it is needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

DOWNLOADS = "HF_HUB_DISABLE_PROGRESS_BARS"
"""The hub's variable for progress bars; who sets it has decided about all of them."""


def drop_torchvision_lines() -> None:
    """Drop the lines in which transformers misses torchvision, which Draft does not use, at each first import."""
    logging.getLogger("transformers.utils.import_utils").addFilter(_about_something_else)


@contextmanager
def loading_silently() -> Iterator[None]:
    """Load weights without transformers' progress bars; those of downloads stay."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    if DOWNLOADS in os.environ or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()  # which also disables those of downloads
    enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _about_something_else(record: logging.LogRecord) -> bool:
    return "torchvision" not in record.getMessage()
