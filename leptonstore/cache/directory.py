"""The directory of a hot cache: one that only this user can write to; and the lock of those who change what is in it.

/dev/shm is writable for everybody and our name in it can be guessed: a directory that another user made there, or a symbolic link, is
refused, as whoever owns it could hand us bytes and see ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from pathlib import Path
from types import TracebackType

from leptonstore import limits
from leptonstore.errors import BadInput, NotPermitted

_RAM = {"tmpfs", "ramfs"}


def usual_place() -> Path:
    """Where this user's cache is when nobody named another place."""
    return Path(f"/dev/shm/lepton-{os.geteuid()}")


def prepare(path: Path, ram_only: bool) -> None:
    """Make the directory, or check the one that is there.

    Raises BadInput (not in RAM where that is asked for), NotPermitted (not ours alone), OSError (read-only, full, no directory).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            raise NotPermitted(f"hot cache {path} is not a directory: remove it, or name another place") from None
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise NotPermitted(
                f"hot cache {path} can be written by others (owner {status.st_uid}, mode {status.st_mode & 0o777:o}): "
                "name a directory of your own, with mode 700"
            ) from None
    if ram_only and filesystem_of(path) not in _RAM:
        raise BadInput(
            f"hot cache {path} is on a {filesystem_of(path) or 'unknown'} filesystem, and decrypted values may only be kept "
            "in RAM: name a directory on a tmpfs, such as /dev/shm"
        )


def filesystem_of(path: Path) -> str:
    """Type of the filesystem that `path` is on ("tmpfs", "ext4"); empty when the system does not tell."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return ""


def boot_id() -> int:
    """A number that changes when the machine restarts; 0 when the system does not tell."""
    try:
        return int(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:15], 16)
    except (OSError, ValueError):
        return 0


class HostLock:
    """A lock between all threads and processes of a host, given back by the system when its holder dies.

    Use as a context manager; not reentrant. flock belongs to an open file, which threads share: hence the mutex. It is asked for again and
    again, up to a bound, as its holder may be a process that somebody stopped. Raises TimeoutError (an OSError).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.mutex = threading.Lock()
        self._fd = -1  # opened when it is needed

    def __enter__(self) -> HostLock:
        until = time.monotonic() + limits.CACHE_LOCK_WAIT_S_MAX
        pause = 0.00005
        while not self.try_enter():
            if time.monotonic() > until:
                raise TimeoutError(
                    errno.ETIMEDOUT, "another process holds its lock, and may be stopped", str(self._path)
                )
            time.sleep(pause)
            pause = min(2 * pause, limits.CACHE_LOCK_POLL_S_MAX)
        return self

    def try_enter(self) -> bool:
        """Enter if that needs no waiting; then `__exit__` is due."""
        if not self.mutex.acquire(blocking=False):
            return False
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            self.mutex.release()
            return False
        except BaseException:
            self.mutex.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self.mutex.release()

    def after_fork_in_child(self) -> None:
        """The inherited file is the parent's lock, too: the child opens one of its own."""
        self.mutex = threading.Lock()
        self.close()

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
