"""What a run did to the files under one directory, operation by operation, with the bytes.

The functions of `os` through which a store writes are wrapped while a `Recorder` is installed. Files and directories are known
by numbers of our own (a device reuses inode numbers). A write that goes around these functions is not missed: what the
recording adds up to is compared with the real directory at the end of every run (`runs.record`).

A recorder can also call somebody before an operation: to let another writer do its work at that very moment, or to kill this one. A
recording goes on in another process (`state`, `resume`), where one was killed.
"""

from __future__ import annotations

import builtins
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = 0  # the number of the recorded directory itself


@dataclass(frozen=True)
class Data:
    """Bytes written to a file; or, when `data` is None, its size set to `offset`."""

    file: int
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class Name:
    """A directory entry set to `child`, or removed (None). A rename also removes `origin` (folder, name), atomically."""

    folder: int
    name: str
    child: int | None
    is_folder: bool = False
    origin: tuple[int, str] | None = None


@dataclass(frozen=True)
class Sync:
    """fsync of a file or a directory."""

    node: int


@dataclass(frozen=True)
class Mark:
    """Something that the application says: what was promised to somebody at this point."""

    what: str
    value: Any = None


Op = Data | Name | Sync | Mark


class Recorder:
    """The operations on `root`, an empty directory, in `ops`. Any thread."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.ops: list[Op] = []
        self.starts: list[int] = []  # for each call, where in `ops` its operation stands
        self.before: Callable[[int], None] = lambda call: None  # called with its number before each operation
        self.at_once: Callable[[int], None] = lambda call: None  # the same, while no other thread is in an operation
        self._lock = threading.RLock()
        self._numbers: dict[int, int] = {os.stat(self.root).st_ino: ROOT}  # inode number -> ours
        self._next = ROOT + 1
        self._real: dict[str, Callable[..., Any]] = {}

    @property
    def calls(self) -> int:
        """Operations so far, marks left out."""
        return len(self.starts)

    def mark(self, what: str, value: Any = None) -> None:
        """Note what the application promised."""
        with self._lock:
            self.ops.append(Mark(what, value))

    def state(self) -> tuple[Any, ...]:
        """All that there is so far; to be pickled."""
        return self.ops, self.starts, self._numbers, self._next

    def resume(self, state: tuple[Any, ...]) -> None:
        """Go on where another process stopped."""
        self.ops, self.starts, self._numbers, self._next = state

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Record while this lasts."""
        names = [name.removeprefix("_os_") for name in dir(self) if name.startswith("_os_")]
        self._real = {name: getattr(os, name) for name in names}
        real_open, real_write_bytes = builtins.open, Path.write_bytes
        try:
            for name in names:
                setattr(os, name, getattr(self, f"_os_{name}"))
            builtins.open = io.open = self._refusing(real_open)
            Path.write_bytes = lambda path, data: self._write_bytes(path, data)
            yield
        finally:
            builtins.open = io.open = real_open
            Path.write_bytes = real_write_bytes
            for name, call in self._real.items():
                setattr(os, name, call)

    @contextmanager
    def _step(self) -> Iterator[None]:
        """One operation: the callbacks first; nobody else until it is recorded."""
        self.before(self.calls)
        with self._lock:
            self.at_once(self.calls)
            self.starts.append(len(self.ops))
            yield

    # -- names ---------------------------------------------------------------------------------------------------

    def _ours(self, path: Any) -> str | None:
        """The real path when it lies in the recorded directory, else None."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        text = os.fsdecode(path)
        full = os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text))
        return full if full.startswith(f"{self.root}/") else None

    def _number(self, fd: int) -> int | None:
        return self._numbers.get(os.fstat(fd).st_ino)

    def _born(self, inode: int) -> int:
        self._numbers[inode] = self._next
        self._next += 1
        return self._numbers[inode]

    def _place(self, path: str) -> tuple[int, str]:
        """(number of the directory, name)."""
        folder, name = os.path.split(path)
        return self._numbers[os.stat(folder).st_ino], name

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        ours = self._ours(path)
        if ours is None or not flags & (os.O_CREAT | os.O_TRUNC):
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
        with self._step():
            existed = os.path.lexists(ours)
            fd = int(self._real["open"](path, flags, mode))
            inode = os.fstat(fd).st_ino
            if not existed:
                self.ops.append(Name(*self._place(ours), self._born(inode)))
            elif flags & os.O_TRUNC:
                self.ops.append(Data(self._numbers[inode], 0, None))
            return fd

    def _os_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        ours = self._ours(path)
        if ours is None:
            self._real["mkdir"](path, mode, dir_fd=dir_fd)
            return
        with self._step():
            self._real["mkdir"](path, mode)
            self.ops.append(Name(*self._place(ours), self._born(os.stat(ours).st_ino), is_folder=True))

    def _os_link(self, source: Any, path: Any, **options: Any) -> None:
        ours = self._ours(path)
        if ours is None:
            self._real["link"](source, path, **options)
            return
        with self._step():
            self._real["link"](source, path, **options)
            self.ops.append(Name(*self._place(ours), self._numbers[os.stat(ours).st_ino]))

    def _os_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("unlink", path, dir_fd)

    def _os_remove(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("remove", path, dir_fd)

    def _os_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("rmdir", path, dir_fd)

    def _removed(self, name: str, path: Any, dir_fd: int | None) -> None:
        ours = self._ours(path) if dir_fd is None else None
        if ours is None:
            self._real[name](path, dir_fd=dir_fd)
            return
        with self._step():
            place = self._place(ours)
            self._real[name](path)
            self.ops.append(Name(*place, None))

    def _os_rename(self, source: Any, path: Any, **options: Any) -> None:
        self._moved("rename", source, path, options)

    def _os_replace(self, source: Any, path: Any, **options: Any) -> None:
        self._moved("replace", source, path, options)

    def _moved(self, name: str, source: Any, path: Any, options: dict[str, Any]) -> None:
        old, new = self._ours(source), self._ours(path)
        if old is None or new is None:
            self._real[name](source, path, **options)
            return
        with self._step():
            origin = self._place(old)
            self._real[name](source, path, **options)
            status = os.stat(new)
            child = self._numbers[status.st_ino]
            self.ops.append(Name(*self._place(new), child, stat.S_ISDIR(status.st_mode), origin))

    # -- bytes ---------------------------------------------------------------------------------------------------

    def _os_pwritev(self, fd: int, parts: Any, offset: int, flags: int = 0) -> int:
        return self._written(fd, offset, b"".join(map(bytes, parts)), lambda: self._real["pwritev"](fd, parts, offset))

    def _os_pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._written(fd, offset, bytes(data), lambda: self._real["pwrite"](fd, data, offset))

    def _os_write(self, fd: int, data: Any) -> int:
        if self._number(fd) is None:
            return int(self._real["write"](fd, data))
        return self._written(fd, os.lseek(fd, 0, os.SEEK_CUR), bytes(data), lambda: self._real["write"](fd, data))

    def _written(self, fd: int, offset: int, data: bytes, write: Callable[[], Any]) -> int:
        number = self._number(fd)
        if number is None:
            return int(write())
        with self._step():
            written = int(write())
            self.ops.append(Data(number, offset, data[:written]))
            return written

    def _os_ftruncate(self, fd: int, length: int) -> None:
        self._resized(fd, lambda: self._real["ftruncate"](fd, length))

    def _os_posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        self._resized(fd, lambda: self._real["posix_fallocate"](fd, offset, length))

    def _resized(self, fd: int, resize: Callable[[], Any]) -> None:
        number = self._number(fd)
        if number is None:
            resize()
            return
        with self._step():
            resize()
            self.ops.append(Data(number, os.fstat(fd).st_size, None))

    def _os_fsync(self, fd: int) -> None:
        self._synced("fsync", fd)

    def _os_fdatasync(self, fd: int) -> None:
        self._synced("fdatasync", fd)

    def _synced(self, name: str, fd: int) -> None:
        number = self._number(fd)
        if number is None:
            self._real[name](fd)
            return
        with self._step():  # the real device is not asked: the disk here is a model
            self.ops.append(Sync(number))

    def _write_bytes(self, path: Path, data: bytes) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            return os.pwrite(fd, data, 0) if data else 0
        finally:
            os.close(fd)

    def _refusing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """`open` for everything but writing in the recorded directory."""

        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+") and self._ours(file) is not None:
                raise AssertionError(f"{file} is written through open(): the recorder does not see that")
            return real(file, mode, *arguments, **options)

        return call
