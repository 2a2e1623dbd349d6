"""What a process that lives long asks of the C library's allocator.

glibc gives each of many threads an arena of its own (eight for each core). A daemon's threads come and go, each receives and sends buffers
of some MiB, and of each arena a few live objects keep many free pages from being given back: 340 MiB were resident in the soak
(bench/daemon_soak.py) of which 20 MiB were in use. With two arenas on the same two cores it is 240 MiB, and no slower.

Buffers of MAPPED_FROM_BYTES are mappings of their own, which go when they are freed. glibc would take them from the arenas, too, once
it has seen one freed (its threshold follows up to 32 MiB), and the holes that they leave grow for as long as one looks.

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

from leptonstore.tiers.direct import append_buffers

ARENAS_MIN, ARENAS_MAX = 2, 8  # one for each core between these: of more, the memory shows and the speed does not
MAPPED_FROM_BYTES = 1 << 20  # a batch is mapped, a chunk is not
KEPT_BYTES = 4 << 20  # free at the end of an arena, before it is given back: not with each batch
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of <malloc.h>
_SET_BY_USER = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def bound_arenas() -> None:
    """Have as many arenas as cores, and keep large buffers out of them. Before threads begin; what the user has set (MALLOC_…,
    GLIBC_TUNABLES) counts."""
    if any(name in os.environ for name in _SET_BY_USER):
        return
    arenas = max(ARENAS_MIN, min(ARENAS_MAX, len(os.sched_getaffinity(0))))
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, arenas)
        libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def settle() -> None:
    """What there is now stays: the collector need not look at it again. Once, when a process that is a daemon is ready."""
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Free what is garbage or waits to be used again, and give free pages to the system: after work that took much for a while. Some
    milliseconds."""
    gc.collect()
    append_buffers.forget()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
