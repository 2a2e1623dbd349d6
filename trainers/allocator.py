"""Memory that one step frees is kept for the next one.

Every step allocates the same activations and gradients and frees them again. glibc's malloc gives the larger ones back to the system each
time, at the latest when 64 MiB at the end of its heap are free; the next step then has every page of them made and zeroed anew, one page
fault for each 4 KiB. With the CNN of the main job that is half of a step's time, once a batch is large enough:

    batch of        32     64    128    256
    as it comes    164    155    291    233    us per row on one core; 9,100 and 16,200 faults per step at 128 and 256
    kept           147    151    165    152

What is kept is the peak of a step, which the process needs again at once. What the user has set (MALLOC_…, GLIBC_TUNABLES) stays. Other
allocators than glibc's are left alone: they keep what is freed by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

# Of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# A larger block is a mapping of its own, which is given back when it is freed. The most that glibc takes on 64 bits.
MAPPED_FROM_BYTES = 32 << 20
# Free bytes at the end of the heap from which on they are given back: the most that mallopt's int holds.
KEPT_BYTES = (1 << 31) - 1
# What glibc itself comes to once a block of MAPPED_FROM_BYTES was freed.
KEPT_OTHERWISE_BYTES = 2 * MAPPED_FROM_BYTES
SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory while the context lasts, in all threads of the process; at its end give back what is free."""
    libc = _glibc()
    if libc is None or any(name in os.environ for name in SET_BY_USER):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_OTHERWISE_BYTES)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.gnu_get_libc_version and libc.mallopt and libc.malloc_trim else None
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
