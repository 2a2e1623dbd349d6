"""Single flight: of all threads and processes of a host that miss the same key, one fetches.

A flight is an exclusive lock on one byte of a file, at the key's fingerprint, held by a descriptor of its own (an "open file description"
lock: it knows threads and processes alike, and the system gives it back when its holder dies). Nobody waits in the system: whoever
waits looks for the value meanwhile, and after a bounded time fetches it too, as the fetcher may be a stopped process. Several keys are
claimed at once by one descriptor, so that what is missed together is fetched together.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from leptonstore import limits
from leptonstore.cache.forks import close_transient, transient

_T = TypeVar("_T")
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux, 64 bit: type, whence, start, length, pid
_RANGE_MASK = (1 << 62) - 1


def open_flight(path: Path) -> int:
    """What `flight` needs; it closes it. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    transient.add(file)
    return file


def claim(file: int, key_prints: Sequence[int]) -> list[int]:
    """Of several keys, the positions of those that nobody else is fetching: the caller is, until `land`, or `file` is closed.

    Does not wait, so that whoever holds some keys never waits for another who waits for these.
    """
    return [at for at, key_print in enumerate(key_prints) if _set_lock(file, key_print, fcntl.F_WRLCK)]


def land(file: int, key_print: int) -> None:
    """The value of a claimed key was fetched: whoever waits for it need not wait for the other keys."""
    _set_lock(file, key_print, fcntl.F_UNLCK)


def _set_lock(file: int, key_print: int, kind: int) -> bool:
    """False when another holds the key."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, key_print & _RANGE_MASK, 1, 0))
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def flight(file: int, key_print: int, landed: Callable[[], _T | None], kept: Callable[[], bool]) -> Iterator[_T | None]:
    """Enter as the one that fetches (None), or with what another has fetched meanwhile.

    Not `kept`: the cache does not keep this value, so whoever waited for it in vain fetches beside the others, as a queue would fetch one
    after another.
    """
    try:
        found, waited = _wait(file, key_print, landed)
        if found is None:
            found = landed()  # it may have landed between the last look and the lock
        if found is None and waited and not kept():
            close_transient(file)
            file = -1  # its number may be another thread's by now
        yield found
    finally:
        close_transient(file)


def _wait(file: int, key_print: int, landed: Callable[[], _T | None]) -> tuple[_T | None, bool]:
    pause, until = 0.0001, time.monotonic() + limits.CACHE_FLIGHT_WAIT_S_MAX
    waited = False
    while not _set_lock(file, key_print, fcntl.F_WRLCK):
        waited = True
        time.sleep(pause)
        found = landed()
        if found is not None or time.monotonic() > until:
            return found, True
        pause = min(2 * pause, limits.CACHE_FLIGHT_POLL_S_MAX)
    return None, waited
