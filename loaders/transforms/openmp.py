"""One thread for an operator of torch, whatever torch's own number is: small operators that many threads call at once.

torch splits an operator over its OpenMP threads and waits for the last of them. For an image of 500 x 375, on two busy cores, that
made an interpolation of 0.3 ms take 8 ms; alone on the machine it gained nothing. `torch.set_num_threads` would reach further: it
decides for all threads that begin later. OpenMP's own number belongs to the calling thread alone.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

_LIBRARY = re.compile(r"\S*/lib(?:g|i)?omp[^/]*\.so[^/\s]*$", re.MULTILINE)


@contextmanager
def one_thread(torch: ModuleType) -> Iterator[None]:
    """Inside, operators of torch that this thread calls use this thread alone. Does nothing where OpenMP is not found."""
    libraries = _openmp()
    torch.get_num_threads()  # the first use in a thread sets OpenMP's number: before us
    before = [library.omp_get_max_threads() for library in libraries]
    for library in libraries:
        library.omp_set_num_threads(1)
    try:
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.omp_set_num_threads(threads)


@cache
def _openmp() -> list[ctypes.PyDLL]:
    """The OpenMP libraries that this process has loaded (torch's is among them). Their calls are too short to release the GIL for."""
    try:
        with open("/proc/self/maps") as maps:
            paths = sorted(set(_LIBRARY.findall(maps.read())))
    except OSError:
        return []
    found = []
    for path in paths:
        try:
            library = ctypes.PyDLL(path)
            library.omp_get_max_threads, library.omp_set_num_threads  # noqa: B018 - are they there?
        except (OSError, AttributeError):
            continue
        found.append(library)
    return found
