"""Ctrl-C before a command runs: while Python, numpy and Arrow are still being loaded.

Imports nothing of weight, for it has to be there first. What happens to Ctrl-C later stands in runtime.py.
"""

from __future__ import annotations

import contextlib
import os
import signal

EXIT_INTERRUPTED = 130
INTERRUPTED = "lepton: interrupted; what was stored is intact, run the command again to go on"


def end_quietly() -> None:
    """From now on SIGINT ends the process at once, with one line and 130. For a process that has opened nothing yet.

    An exception would not do: libraries that are being loaded drop it, or make an ImportError of it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # `nohup`, and jobs in the background of a shell
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: object) -> None:
    with contextlib.suppress(OSError):  # nobody reads
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(EXIT_INTERRUPTED)
