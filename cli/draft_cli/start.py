"""Where the command `draft` begins: Ctrl-C and closed streams are dealt with before anything large is imported."""

from __future__ import annotations

import signal
import sys

from draft_cli.interrupts import interrupts


def main() -> None:
    """Run the command line to the end of this process; the one place that changes what belongs to the process."""
    interrupts.listen()
    # Even what the streams need (typing, re) takes long enough to be interrupted in.
    from draft_cli.streams import flushed, open_streams

    open_streams()
    code: object = 0
    try:
        from draft_cli.app import main as run

        run()
    except SystemExit as end:
        code = end.code
    finally:
        # The interpreter still waits for threads, and calls what wanted to be called at the end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(flushed(code))
