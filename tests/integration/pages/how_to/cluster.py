"""docs/how-to/cluster.md: its daemons are killed also when a block of it fails."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    try:
        yield
    finally:
        started = place.folder / "daemons.pid"
        for pid in started.read_text().split() if started.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
