"""What the libraries beneath may say on standard error."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from draft_cli.console import quiet_libraries

BARS = """
import sys
from draft_cli.console import quiet_libraries
quiet_libraries()
from transformers.utils import logging
for _ in logging.tqdm(range(3), desc="Loading weights"):
    pass
"""


LIBRARY = """
import draft
draft.load("pickscore", model="emoji/preference", processor="")
draft.load("emoji_judge")
import draft.diffusion.families.sd
"""


QUIET = ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")
"""What `quiet_libraries` sets; another test may have called it in this process."""


def test_neither_a_reward_nor_a_model_lets_transformers_report_what_nobody_can_act_on() -> None:
    """Its bars while weights are loaded, and its lines about torchvision at the first import of a pipeline."""
    environment = {name: value for name, value in os.environ.items() if name not in QUIET}
    done = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, env=environment, check=True)
    assert "Loading weights" not in done.stderr and "torchvision" not in done.stderr


@pytest.mark.parametrize(("own", "shown"), [(None, False), ("0", True)])
def test_no_bar_is_drawn_into_a_pipe_unless_somebody_asks_for_it(own: str | None, shown: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in QUIET}
    environment |= {} if own is None else {"HF_HUB_DISABLE_PROGRESS_BARS": own}
    done = subprocess.run([sys.executable, "-c", BARS], capture_output=True, text=True, env=environment, check=True)
    assert ("Loading weights" in done.stderr) == shown


def test_bars_of_downloads_alone_stay_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "x")
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    # Set and deleted, so that whatever the test does to it is undone.
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "x")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    quiet_libraries()
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    terminal = "import sys; sys.stderr.isatty = lambda: True\n"
    download = (
        "from huggingface_hub.utils import tqdm\n"
        "for _ in tqdm(range(3), desc='Downloading', disable=False):\n    pass\n"  # as the hub's own files are
    )
    done = subprocess.run(
        [sys.executable, "-c", terminal + BARS + download], capture_output=True, text=True, check=True
    )
    assert "Downloading" in done.stderr and "Loading weights" not in done.stderr
