"""The one way to write a file so that it survives a crash or power loss at any moment.

    temporary name -> write -> check the length -> fsync -> close -> link to the final name -> fsync the directory

Invariants:
- A final name appears with all of its bytes or not at all, and is never overwritten (`link` fails when it exists).
- When a function here returns, the file and its name are on the device (as far as fsync can be believed).
- A temporary is locked (flock) for as long as its writer lives, so that a cleaner can tell a dead one from one in use.
- Modes follow the writer's umask, and the group follows the directory (setgid is inherited): nothing is ever narrowed, so that several
  users can share a store. A temporary of another user is left alone.
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
from leptonstore.errors import LeptonError, NotPermitted, StoreFull

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# A writer locks its temporary right after creating it; younger ones are left alone even when they look unlocked.
TEMPORARY_AGE_S_MIN = 3600.0
# Directories whose names this process knows to be durable: path, device, inode. A store has at most 256 and a few.
_durable_directories: set[tuple[str, int, int]] = set()


@contextlib.contextmanager
def full_disk_named(place: Path) -> Iterator[None]:
    """Turn "no space left" into StoreFull, naming the place and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(
                f"no space left on the device of {place} ({error.strerror}): free some space (`lepton gc` removes what no "
                "version needs, also on a full disk) and run the command again; what was stored before is intact"
            ) from None
        raise


@contextlib.contextmanager
def failures_named(place: Path) -> Iterator[None]:
    """Also turn "permission denied", in a store, into NotPermitted."""
    try:
        with full_disk_named(place):
            yield
    except OSError as error:
        if error.errno in _FORBIDDEN:
            raise NotPermitted(
                f"this user may not write {error.filename or place} ({error.strerror}): use a user that may, or share the "
                "store with a group (directories with mode 2775, and `umask 002` for everybody who writes)"
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
    """Create a directory (and its parents) and make its name durable; no error when it exists.

    One that exists may be the work of a process that died, or is still, before its fsync: what is stored in there would go with
    the name. So each process syncs the name of a directory once before it relies on it.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        make_directory(path.parent)
        with failures_named(path), contextlib.suppress(FileExistsError):
            os.mkdir(path)
        sync_directory(path.parent)
        return
    known = (str(path), status.st_dev, status.st_ino)
    if known not in _durable_directories:
        with contextlib.suppress(PermissionError):  # a parent that we may not even list is not of our making
            sync_directory(path.parent)
        _durable_directories.add(known)


class NewFile:
    """A file under a temporary name in `tmp`, which becomes `path` by `publish`. Not for use by several threads."""

    def __init__(self, path: Path, tmp: Path) -> None:
        self.path = path
        self.length = 0  # of what is written; `publish` checks it
        self._fd, self._process = -1, os.getpid()
        self._temporary = tmp / f"{path.name}.{secrets.token_hex(8)}.tmp"
        with failures_named(path):
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def fd(self) -> int:
        """The open file, for whoever writes to it in another way and then sets `length`."""
        return self._fd

    def reopen(self) -> int:
        """Another descriptor of it, for reading; the caller closes it."""
        return os.open(self._temporary, os.O_RDONLY | os.O_CLOEXEC)

    def write(self, *parts: Buffer) -> None:
        """Append all of `parts`, with one call where the device takes it. Raises StoreFull; the caller then aborts."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        with failures_named(self.path):
            while views:
                written = os.pwritev(self._fd, views, self.length)
                self.length += written
                while views and written >= len(views[0]):
                    written -= len(views.pop(0))
                if written:
                    views[0] = views[0][written:]

    def allocate(self, size: int) -> None:
        """Make it `size` bytes long, all of them occupied on the device. Raises StoreFull."""
        with failures_named(self.path):
            os.posix_fallocate(self._fd, 0, size)
        self.length = size

    def publish(self) -> bool:
        """Make it durable under its final name: True, or False when that name exists already. Closes it."""
        try:
            with failures_named(self.path):
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

    def __del__(self) -> None:
        # An interrupt may fall between the making of a file and the moment when somebody holds it. A forked child holds a
        # copy of this object, and must leave the parent's file alone.
        if self._fd >= 0 and self._process == os.getpid():
            self.abort()


def create_file(path: Path, data: bytes, tmp: Path) -> bool:
    """A small file, created if absent: True, or False when it exists. Durable when it returns."""
    new = NewFile(path, tmp)
    try:
        new.write(data)
        return new.publish()
    finally:
        new.abort()


def preallocate_file(path: Path, size: int, tmp: Path) -> bool:
    """A file of `size` bytes that really occupies them, created if absent: False when it exists. Raises StoreFull."""
    new = NewFile(path, tmp)
    try:
        new.allocate(size)
        return new.publish()
    finally:
        new.abort()


def move_file(path: Path, to: Path) -> None:
    """Rename within the filesystem, replacing nothing that is needed; durable when it returns."""
    make_directory(to.parent)
    with failures_named(to):
        os.replace(path, to)
        sync_directory(to.parent)
        sync_directory(path.parent)


def replace_file(path: Path, data: bytes, tmp: Path) -> None:
    """Create or replace a hint: atomic, not durable."""
    temporary = tmp / f"{path.name}.{secrets.token_hex(8)}.tmp"
    with failures_named(path):
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_dead_temporaries(tmp: Path, young_too: bool = False) -> int:
    """Remove temporaries whose writer is gone. Returns how many.

    young_too: for an erasure, which begins when nobody writes: a writer that just made one and has not locked it yet would fail.
    """
    removed = 0
    for entry in os.scandir(tmp):  # those that another user wrote may be unreadable: left to their owner
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime < TEMPORARY_AGE_S_MIN and not young_too:
                continue
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its writer lives
                os.unlink(entry.path)
                removed += 1
            finally:
                os.close(fd)
    return removed


class LockFile:
    """A file that is locked (flock) from before it is visible until `release` or the end of the process. Not durable.

    A child made by fork shares the lock: it must `forget` it, or the file outlives the parent.
    """

    def __init__(self, path: Path, data: bytes, tmp: Path) -> None:
        self.name, self._path = path.name, path
        temporary = tmp / f"{path.name}.tmp"
        with failures_named(path):
            self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_APPEND, 0o666)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(self._fd, data)
                os.rename(temporary, path)  # the name is random: nothing is overwritten
            except BaseException:
                os.close(self._fd)
                temporary.unlink(missing_ok=True)
                raise

    def append(self, data: bytes) -> None:
        """Add to the file, with one call. Raises StoreFull."""
        with failures_named(self._path):
            os.write(self._fd, data)

    def release(self) -> None:
        """Remove the file. May be called twice."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Close it and leave the file: in a child process, whose parent holds the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def remove_if_dead(path: Path) -> bool:
    """Remove a LockFile whose maker is gone: whether it is gone now. One that cannot be judged counts as live."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except OSError:  # BlockingIOError: its maker lives. Others: not ours to remove
        return False
    finally:
        os.close(fd)
