"""systemd's side of a daemon: what it is told over its socket (sd_notify: datagrams; no library is needed).

Nothing happens where $NOTIFY_SOCKET is not set. docs/deploy/lepton-serve.service uses it with Type=notify.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


def notify(*lines: str) -> None:
    """Tell systemd, such as notify("READY=1", "STATUS=serving"). Never raises: a daemon runs without an ear too."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(1.0)
        channel.sendto("\n".join(lines).encode(), "\0" + place[1:] if place[0] == "@" else place)


def notify_reloading() -> None:
    """As Type=notify-reload wants it: with the time, so that systemd knows which reload it was."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")


def watchdog_s() -> float | None:
    """How often systemd wants to hear WATCHDOG=1 (half of its patience); None: it does not."""
    with suppress(KeyError, ValueError):
        if int(os.environ.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return max(0.1, int(os.environ["WATCHDOG_USEC"]) / 2e6)
    return None
