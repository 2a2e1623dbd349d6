"""Export of a directory of files (leptonstore.dataset.filetree): contents, modes, times, links, empty directories.

The thread that calls makes directories and links, in row order; a pool writes the files, several small ones as one job.
Large files: see `large_file`. Modes and times of directories are set last, deepest first: writing into one changes them.

Paths are data that somebody else may have written: every directory on the way is opened by descriptor and without
following links (see confined). Set-user-id and set-group-id bits are not restored: whoever exports becomes the owner.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from leptonstore import limits
from leptonstore.dataset import filetree
from leptonstore.dataset.confined import ConfinedFolder, checked_parts, temporary_name, writing
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.large_file import DirectFile, LargeFiles
from leptonstore.errors import BadInput, ChunkCorrupt
from leptonstore.format.page import REFERENCE
from leptonstore.tiers.direct import ALIGN, aligned_memory, write_all

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MODES = 0o1777


class _File(NamedTuple):
    """One file to write into an open directory."""

    name: str
    row: int
    mode: int
    mtime_ns: int
    value: bytes  # its content, or a reference to it
    is_reference: bool


@dataclass
class Written:
    """What an export wrote."""

    rows: int = 0
    files: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, size: int) -> None:
        """Count a file. Any thread."""
        with self._lock:
            self.files += 1
            self.bytes += size


def export_tree(ds: Dataset, dest: Path, progress: Callable[[int], None]) -> Written:
    """Write the tree of `ds` below `dest`. Raises BadInput (paths that lead out), StoreFull, ChunkMissing, ChunkCorrupt."""
    threads = len(os.sched_getaffinity(0))
    with (
        ConfinedFolder(dest) as folder,
        ThreadPoolExecutor(threads, "lepton-decode") as decoders,
        ThreadPoolExecutor(threads, "lepton-export") as pool,
    ):
        work = _Export(ds, folder, pool, LargeFiles(ds.store, decoders))
        try:
            for done in work.rows():
                progress(done)
        except BaseException:
            work.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        work.finish_directories()
    return work.written


class _Export:
    def __init__(self, ds: Dataset, folder: ConfinedFolder, pool: ThreadPoolExecutor, large: LargeFiles) -> None:
        self._ds, self._folder, self._pool, self._large = ds, folder, pool, large
        self.written = Written()
        self.stopped = threading.Event()
        self._directories: list[tuple[list[str], int, int]] = []
        self._jobs: deque[Future[None]] = deque()
        self._local = threading.local()

    def rows(self) -> Iterator[int]:
        """Do it; yields numbers of rows whose work is under way."""
        names = ["path", "kind", "mode", "mtime_ns", "data"]
        for first, columns in self._ds.iter_stored(names):
            paths, kinds, modes, times, data = (column.values.to_pylist() for column in columns)
            references = columns[-1].references
            marks = references.tolist() if references is not None else [False] * len(paths)
            here: list[str] = []
            files: list[_File] = []
            size = 0
            for at, path in enumerate(paths):
                parts = [] if path == filetree.ROOT else checked_parts(os.fsdecode(path))
                if kinds[at] != filetree.FILE:
                    self._make(parts, kinds[at], modes[at], times[at], data[at])
                    continue
                value = data[at]
                length = REFERENCE.unpack(value)[1] if marks[at] else len(value)
                if files and (parts[:-1] != here or size + length > limits.READ_JOB_BYTES):
                    self._submit(here, files)
                    files, size = [], 0
                here = parts[:-1]
                if not parts:
                    raise BadInput(f"row {first + at} is a file that stands for the folder itself; clean the dataset")
                files.append(_File(parts[-1], first + at, modes[at], times[at], value, marks[at]))
                size += length
            if files:
                self._submit(here, files)
            self.written.rows += len(paths)
            yield len(paths)
        while self._jobs:
            self._jobs.popleft().result()

    def _make(self, parts: list[str], kind: int, mode: int, mtime_ns: int, target: bytes) -> None:
        """A directory or a link."""
        if kind == filetree.DIRECTORY:
            os.close(self._folder.open_folder(parts))
            self._directories.append((parts, mode, mtime_ns))
            return
        if kind != filetree.SYMLINK or not parts:
            raise BadInput(f"path {'/'.join(parts)!r} is neither file, directory nor link; clean the dataset")
        parent = self._folder.open_folder(parts[:-1])
        try:
            with writing(Path(*parts)):
                temporary = temporary_name()
                os.symlink(target, temporary, dir_fd=parent)
                os.utime(temporary, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
                os.replace(temporary, parts[-1], src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            os.close(parent)

    def _submit(self, folder: list[str], files: list[_File]) -> None:
        self._jobs.append(self._pool.submit(self._write_files, folder, files))
        while len(self._jobs) > limits.EXPORT_JOBS_AHEAD:
            self._jobs.popleft().result()

    # -- in the pool ---------------------------------------------------------------------------------------------

    def _write_files(self, folder: list[str], files: list[_File]) -> None:
        parent = self._folder.open_folder(folder)
        try:
            for file in files:
                if self.stopped.is_set():
                    return
                with writing("/".join((*folder, file.name))):
                    self.written.add(self._write(parent, file))
        finally:
            os.close(parent)

    def _write(self, parent: int, file: _File) -> int:
        temporary = temporary_name()
        fd = os.open(temporary, _CREATE, 0o600, dir_fd=parent)
        try:
            try:
                size = self._fill(fd, file)
                os.fchmod(fd, file.mode & _MODES)
                os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
            finally:
                os.close(fd)
            os.replace(temporary, file.name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise
        return size

    def _fill(self, fd: int, file: _File) -> int:
        if not file.is_reference:
            write_all(fd, memoryview(file.value), 0)
            return len(file.value)
        digest, size = REFERENCE.unpack(file.value)
        store = self._ds.store
        with self._ds.errors_at(file.row, "data"):
            pieces = store.pieces(digest)
            if pieces is not None:
                self._large.write(fd, digest, size, pieces)
            elif size <= limits.VALUE_INLINE_BYTES_MAX:
                write_all(fd, memoryview(store.get(digest)), 0)
            elif size > limits.CHUNK_BYTES_MAX:
                raise ChunkCorrupt(digest.hex(), "-", f"its reference says {size} bytes")
            else:
                window = self._own_window(size)
                store.read_into(digest, window[:size])
                DirectFile(fd, size).write(window, size, 0)
        return int(size)

    def _own_window(self, size: int) -> memoryview:
        """Memory of this thread for a file of `size` bytes and padding."""
        window: memoryview | None = getattr(self._local, "window", None)
        if window is None or len(window) < size + ALIGN:
            room = max(size, self._ds.store.config.chunks.cut_above)  # what a value that is no chunk list has at most
            window = self._local.window = aligned_memory(room + ALIGN)
        return window

    # -- last ----------------------------------------------------------------------------------------------------

    def finish_directories(self) -> None:
        """Modes and times, the deepest first."""
        for parts, mode, mtime_ns in sorted(self._directories, key=lambda entry: -len(entry[0])):
            fd = self._folder.open_folder(parts)
            try:
                with writing(Path(*parts) if parts else Path(".")):
                    os.utime(fd, ns=(mtime_ns, mtime_ns))
                    os.fchmod(fd, mode & _MODES)
            finally:
                os.close(fd)
