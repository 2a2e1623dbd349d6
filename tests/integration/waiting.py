"""Waiting for what another thread, process or server does: until it has come to pass, and not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_until(
    true: Callable[[], bool], say: Callable[[], object] = lambda: "it did not come to pass", seconds: float = 60.0
) -> None:
    """Look again and again. `say` tells what is there instead, when time is over."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, say()
        time.sleep(0.01)


def unrenewed_s(tier: Any, lock: Any) -> float:
    """For how long nobody has renewed a lock of an object tier, by the server's own clock."""
    modified = tier._client.entry(f"leases/{lock.name}").modified
    return float((tier._keeper.server_time() - modified).total_seconds())
