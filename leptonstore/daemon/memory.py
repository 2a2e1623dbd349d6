"""What a process that lives long asks of the C library's allocator.

glibc gives each of many threads an arena of its own (eight for each core). A daemon's threads come and go, each receives and sends buffers
of some MiB, and of each arena a few live objects keep many free pages from being given back: 340 MiB were resident in the soak
(bench/daemon_soak.py) of which 20 MiB were in use. With two arenas on the same two cores it is 240 MiB, and no slower.

Elsewhere than on glibc nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

ARENAS_MIN, ARENAS_MAX = 2, 8  # one for each core between these: of more, the memory shows and the speed does not
_M_ARENA_MAX = -8


def bound_arenas() -> None:
    """Have as many arenas as cores. Before threads begin; where $MALLOC_ARENA_MAX is set, that counts."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        arenas = max(ARENAS_MIN, min(ARENAS_MAX, len(os.sched_getaffinity(0))))
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, arenas)


def give_back() -> None:
    """Give free pages to the system: after work that took much for a while. Some milliseconds."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
