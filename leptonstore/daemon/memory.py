"""What a process that lives long asks of the C library's allocator.

glibc gives each of many threads an arena of its own (eight for each core). A daemon's threads come and go, each receives and sends buffers
of some MiB, and of each arena a few live objects keep many free pages from being given back: 340 MiB were resident in the soak
(bench/daemon_soak.py) of which 20 MiB were in use. With two arenas on the same two cores it is 240 MiB, and no slower.

What refers to itself in a circle (a store and its writer, a connection and its request) is freed by Python's collector alone, and that
looks at everything only when a quarter as much as there is has been added: minutes, in which closed stores and connections pile up. What
there is once a daemon is ready, mostly code, stays for as long as it lives: it is frozen (`settle`), after which a look at all the rest
takes milliseconds, and comes when it should; `give_back` has one, too.

Elsewhere than on glibc nothing is asked of the allocator.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

ARENAS_MIN, ARENAS_MAX = 2, 8  # one for each core between these: of more, the memory shows and the speed does not
_M_ARENA_MAX = -8


def bound_arenas() -> None:
    """Have as many arenas as cores. Before threads begin; where $MALLOC_ARENA_MAX is set, that counts."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        arenas = max(ARENAS_MIN, min(ARENAS_MAX, len(os.sched_getaffinity(0))))
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, arenas)


def settle() -> None:
    """What there is now stays: the collector need not look at it again. Once, when a process that is a daemon is ready."""
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Free what is garbage, and give free pages to the system: after work that took much for a while. Some milliseconds."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
