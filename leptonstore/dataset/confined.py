"""Writing files to disk for an export: whole or not at all, and never outside of the folder that was given.

Paths of an exported table are data that somebody else may have written: "../../.bashrc", "/etc/passwd", or a path
through a symbolic link that already lies in the folder. So a path is taken apart, and each folder on the way is opened
by descriptor, relative to the one before and without following links: there is no moment at which a name could be
exchanged between check and use. (POSIX only: it needs openat.)

A file is written under a temporary name and renamed. The rename is atomic for whoever looks; it is synced to the disk
only for a single-file export. An export is a copy: after a power cut, run it again.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, StoreFull

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Inside, an OSError about `path` is a StoreFull (no space, no quota) or a BadInput that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space to write {path}; free some and run the export again") from error
        why = (error.strerror or str(error)).lower()
        raise BadInput(f"cannot write {path}: {why}; give another place") from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the name `path` when the block ends, and is removed when the block fails.

    Makes missing folders above it. Raises BadInput or StoreFull.
    """
    temporary = path.with_name(temporary_name())
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("xb")
    try:
        with file:
            yield file
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        with writing(path):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_numbers = itertools.count()
_names = secrets.token_hex(8)


def temporary_name() -> str:
    """A name that nobody else uses, for a file that is not whole yet. Any thread; a forked child has names of its own."""
    return f".{_names}-{os.getpid()}-{next(_numbers)}.partial"


def checked_parts(path: str) -> list[str]:
    """The components of a relative path with forward slashes. Raises BadInput for one that could lead elsewhere."""
    parts = path.split("/")
    separators = [sep for sep in (os.sep, os.altsep) if sep]
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or any(sep in part for sep in separators):
            raise BadInput(f"path {path!r} is not one inside of a folder (absolute, empty, '.' or '..'); rename it")
    return parts


class ConfinedFolder:
    """A folder into which files are written by relative path; nothing is ever written outside of it.

    Remembers the paths written, to refuse a second file of one name: memory grows with the number of files (about 100
    bytes and the path for each). Not safe for several threads. Use it as a context manager.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._written: set[str] = set()
        self._last: tuple[list[str], int] | None = None  # rows of one folder mostly follow each other

    def __enter__(self) -> ConfinedFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget_last()
        os.close(self._root_fd)

    def write(self, path: str, data: Buffer) -> None:
        """Write one file, making the folders on its way. An older file of that name is replaced, whole.

        Raises BadInput (a path that leads out, was written before, or goes through a link or a file) and StoreFull.
        """
        *folders, name = checked_parts(path)
        if path in self._written:
            raise BadInput(f"two rows have the path {path!r}; give them different ones")
        with writing(self._root / path):
            self._write_at(self._folder(folders), name, data)
        self._written.add(path)

    def _write_at(self, folder: int, name: str, data: Buffer) -> None:
        temporary = temporary_name()
        file = os.fdopen(os.open(temporary, _CREATE_FILE, 0o666, dir_fd=folder), "wb")
        try:
            with file:
                file.write(data)
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(temporary, dir_fd=folder)
            raise

    def entry(self, folders: list[str]) -> tuple[int, str]:
        """(descriptor of the folder above, name) of a folder at these checked parts, for a look at it by name. Not any thread.

        The descriptor is good until the next call.
        """
        with writing(self._root.joinpath(*folders)):
            return self._folder(folders[:-1]), folders[-1]

    def open_folder(self, folders: list[str]) -> int:
        """A descriptor of the folder at these checked parts, which are made where they are missing. The caller closes it.

        Any thread. Raises BadInput or StoreFull.
        """
        with writing(self._root.joinpath(*folders)):
            current = os.dup(self._root_fd)
            for folder in folders:
                try:
                    inner = _open_folder(folder, current)
                finally:
                    os.close(current)
                current = inner
            return current

    def _folder(self, folders: list[str]) -> int:
        """A descriptor of the folder; it stays open until another folder is asked for."""
        if not folders:
            return self._root_fd
        if self._last is not None and self._last[0] == folders:
            return self._last[1]
        self._forget_last()
        self._last = (folders, self.open_folder(folders))
        return self._last[1]

    def _forget_last(self) -> None:
        if self._last is not None:
            os.close(self._last[1])
            self._last = None


def _open_folder(name: str, above: int) -> int:
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=above)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=above)
        return os.open(name, _OPEN_FOLDER, dir_fd=above)
