"""Packs of a directory that are open for reading: one set for all tiers of a process that read there, so that its descriptors are bounded
however many stores it has open (a daemon has one for each writer), and so that who removes or replaces a file lets go of it for all.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

OPEN_PACKS_MAX = 128  # of one directory; up to three descriptors each: well under the usual limit of 1,024


class OpenFile:
    """A descriptor that closes with its last user: one who reads keeps it from being closed by whoever forgets it."""

    __slots__ = ("_around", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._around: tuple[int, ...] | None = None  # not tried yet

    def around(self, path: Path) -> tuple[int, ...]:
        """Two more descriptors: one that tells what is in the page cache, one that bypasses it. None where there is no such thing.

        The first never reads ahead: asking the usual one (RWF_NOWAIT) makes Linux read what it does not have.
        """
        if self._around is None:
            opened: list[int] = []
            try:
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                os.posix_fadvise(opened[0], 0, 0, os.POSIX_FADV_RANDOM)
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
            except OSError:
                while opened:
                    os.close(opened.pop())
            self._around = tuple(opened)
        return self._around

    def __del__(self) -> None:
        for fd in (self.fd, *(self._around or ())):
            os.close(fd)


class OpenFiles:
    """Those of one directory, by pack; the last one used goes last. Any thread. Descriptors stay usable in a child process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._users: weakref.WeakSet[object] = weakref.WeakSet()

    def get(self, pack: str) -> OpenFile | None:
        """Locked: the pack's file, None when it is not open."""
        file = self._files.get(pack)
        if file is not None:
            self._files.move_to_end(pack)
        return file

    def open(self, pack: str, path: Path, user: object) -> OpenFile:
        """Locked: open it, for `user` and everybody else. Raises OSError."""
        file = self._files[pack] = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._users.add(user)
        if len(self._files) > OPEN_PACKS_MAX:
            self._files.popitem(last=False)
        return file

    def leave(self, user: object) -> None:
        """`user` reads no more, for now; with the last one that opened something, all are closed."""
        with self.lock:
            self._users.discard(user)
            if not self._users:
                self._files.clear()

    def forget(self, pack: str) -> None:
        """Open it anew the next time: its file was removed, or is another one now."""
        with self.lock:
            self._files.pop(pack, None)


_shared: weakref.WeakValueDictionary[str, OpenFiles] = weakref.WeakValueDictionary()
_guard = threading.Lock()


def open_files(root: Path) -> OpenFiles:
    """The set of all who read below `root`."""
    key = os.path.realpath(root)
    with _guard:
        found = _shared.get(key)
        if found is None:
            found = _shared[key] = OpenFiles()
        return found


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    with contextlib.suppress(RuntimeError):  # another thread of the parent was changing it
        for files in list(_shared.values()):
            files.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
