"""What Ctrl-C does, from the first moment of the command on."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

_ONE_WISH = 1.0
"""Seconds within which further presses of Ctrl-C mean the same as the one before."""


class Interrupts:
    """What Ctrl-C does: it ends a command that has not begun at once, and one that has begun in order.

    Several presses in a row are one, so that the later ones cannot interrupt the way out.
    """

    def __init__(self) -> None:
        self.begun = False
        """Whether there may be something to put in order; before, half an import would only break libraries."""
        self.raised = False
        """Whether an interrupt was raised; a library may have made another exception of it."""
        self._last = float("-inf")

    def listen(self) -> None:
        """Hear Ctrl-C, where the shell does not have its background jobs ignore it."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self.begun:
            os.write(2, b"interrupted\n")
            os._exit(130)
        before, self._last = self._last, time.monotonic()
        if self._last - before > _ONE_WISH:
            self.raised = True
            raise KeyboardInterrupt


interrupts = Interrupts()
