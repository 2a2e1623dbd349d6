"""The one way to write a file so that it survives a crash or power loss at any moment.

    temporary name -> write -> check the length -> fsync -> close -> link to the final name -> fsync the directory

Invariants:
- A final name appears with all of its bytes or not at all, and is never overwritten (`link` fails when it exists).
- When a function here returns, the file and its name are on the device (as far as fsync can be believed).
- A temporary is locked (flock) for as long as its writer lives, so that a cleaner can tell a dead one from one in use.
On a full disk everything that was half done is removed and StoreFull is raised.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from leptonstore.digest import Buffer
from leptonstore.errors import LeptonError, StoreFull

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A writer locks its temporary right after creating it; younger ones are left alone even when they look unlocked.
TEMPORARY_AGE_S_MIN = 3600.0


@contextlib.contextmanager
def full_disk_named(place: Path) -> Iterator[None]:
    """Turn "no space left" into StoreFull, naming the place and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(
                f"no space left on the device of {place} ({error.strerror}): free some space and run the command again; "
                "what was stored before is intact"
            ) from None
        raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Create a directory (and its parents) and make its name durable; no error when it exists."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with full_disk_named(path), contextlib.suppress(FileExistsError):
        os.mkdir(path)
    sync_directory(path.parent)


class NewFile:
    """A file under a temporary name in `tmp`, which becomes `path` by `publish`. Not for use by several threads."""

    def __init__(self, path: Path, tmp: Path) -> None:
        self.path = path
        self.length = 0
        self._temporary = tmp / f"{path.name}.{secrets.token_hex(8)}.tmp"
        with full_disk_named(path):
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, *parts: Buffer) -> None:
        """Append all of `parts`, with one call where the device takes it. Raises StoreFull; the caller then aborts."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        with full_disk_named(self.path):
            while views:
                written = os.pwritev(self._fd, views, self.length)
                self.length += written
                while views and written >= len(views[0]):
                    written -= len(views.pop(0))
                if written:
                    views[0] = views[0][written:]

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written before."""
        return os.pread(self._fd, length, offset)

    def publish(self) -> bool:
        """Make it durable under its final name: True, or False when that name exists already. Closes it."""
        try:
            with full_disk_named(self.path):
                size = os.fstat(self._fd).st_size
                if size != self.length:
                    raise LeptonError(f"{self.path}: wrote {self.length} bytes, the file has {size}: check the device")
                os.fsync(self._fd)
                try:
                    os.link(self._temporary, self.path)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                        raise LeptonError(
                            f"the filesystem of {self.path.parent} has no hard links, which a store's log needs: "
                            "put the store on a filesystem that has them"
                        ) from None
                    raise
                sync_directory(self.path.parent)
                return True
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove the temporary; what was published stays. May be called twice."""
        if self._fd < 0:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)
        os.close(self._fd)
        self._fd = -1


def create_file(path: Path, data: bytes, tmp: Path) -> bool:
    """A small file, created if absent: True, or False when it exists. Durable when it returns."""
    new = NewFile(path, tmp)
    try:
        new.write(data)
        return new.publish()
    finally:
        new.abort()


def replace_file(path: Path, data: bytes, tmp: Path) -> None:
    """Create or replace a hint: atomic, not durable."""
    temporary = tmp / f"{path.name}.{secrets.token_hex(8)}.tmp"
    with full_disk_named(path):
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_dead_temporaries(tmp: Path) -> int:
    """Remove temporaries whose writer is gone. Returns how many."""
    removed = 0
    for entry in os.scandir(tmp):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime < TEMPORARY_AGE_S_MIN:
                continue
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its writer lives
                os.unlink(entry.path)
                removed += 1
            finally:
                os.close(fd)
    return removed
