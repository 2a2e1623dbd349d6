"""Export of a directory of files (leptonstore.dataset.filetree): contents, modes, times, links, empty directories.

The rows are divided into units, each a stretch of rows that one worker reads and writes. Workers are processes where that is
possible (making, writing and renaming small files is mostly Python, and threads would take turns), else threads. Large
files: see `large_file`. Modes and times of directories are set last, deepest first: writing into one changes them.

Paths are data that somebody else may have written: every directory on the way is opened by descriptor and without
following links (see confined). Set-user-id and set-group-id bits are not restored: whoever exports becomes the owner.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from leptonstore import limits
from leptonstore.dataset import filetree
from leptonstore.dataset.confined import ConfinedFolder, checked_parts, temporary_name, writing
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.large_file import DirectFile, LargeFiles
from leptonstore.dataset.processes import can_fork, run_forked
from leptonstore.errors import BadInput, ChunkCorrupt
from leptonstore.format.page import REFERENCE
from leptonstore.tiers.direct import ALIGN, ThreadMemory, write_all

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
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

    def add(self, other: Written) -> None:
        """Count that, too."""
        self.rows, self.files, self.bytes = self.rows + other.rows, self.files + other.files, self.bytes + other.bytes


class Unit(NamedTuple):
    """Rows [first, end), and about how many bytes their files have."""

    first: int
    end: int
    bytes: int


def export_tree(ds: Dataset, dest: Path, progress: Callable[[int], None]) -> Written:
    """Write the tree of `ds` below `dest`. Raises BadInput (paths that lead out), StoreFull, ChunkMissing, ChunkCorrupt."""
    workers = len(os.sched_getaffinity(0))
    units = _units(ds, workers)
    written = Written()
    with ConfinedFolder(dest) as folder:
        stopped = mmap.mmap(-1, 1)  # shared with child processes
        large = len(units) > 1 and (len(ds) >= limits.EXPORT_FORK_ROWS or units[0].bytes >= limits.EXPORT_FORK_BYTES)
        if large and can_fork():

            def work(jobs: Iterator[int], say: Callable[[object], None]) -> None:
                with ThreadPoolExecutor(workers, "lepton-decode") as decoders:
                    worker = _Worker(ds, folder, LargeFiles(ds.store, decoders), stopped)
                    for job in jobs:
                        say(worker.write_unit(units[job]))

            done = run_forked(work, len(units), workers, stop=lambda: stopped.__setitem__(0, 1))
        else:
            done = _in_threads(ds, folder, units, workers, stopped)
        for share in done:
            assert isinstance(share, Written)
            written.add(share)
            progress(share.rows)
        _finish_directories(ds, folder)
    return written


def _in_threads(
    ds: Dataset, folder: ConfinedFolder, units: list[Unit], workers: int, stopped: mmap.mmap
) -> Iterator[Written]:
    with (
        ThreadPoolExecutor(workers, "lepton-decode") as decoders,
        ThreadPoolExecutor(workers, "lepton-export") as pool,
    ):
        worker = _Worker(ds, folder, LargeFiles(ds.store, decoders), stopped)
        try:
            yield from pool.map(worker.write_unit, units)
        except BaseException:
            stopped[0] = 1
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _units(ds: Dataset, workers: int) -> list[Unit]:
    """Stretches of rows. Those with many bytes come first, so that no worker begins a long one when the others are done."""
    units = []
    for first, (sizes,) in ds.iter_stored(["size"]):
        values = sizes.values.to_numpy(zero_copy_only=False)
        # A row group is read as a whole: it is cut only where there are too few of them to keep all workers busy.
        cuts = max(1, limits.EXPORT_UNITS * workers * len(values) // max(1, len(ds)))
        for part in np.array_split(np.arange(len(values)), cuts):
            if len(part):
                start, end = first + int(part[0]), first + int(part[-1]) + 1
                units.append(Unit(start, end, int(values[part].sum())))
    return sorted(units, key=lambda unit: -unit.bytes if unit.bytes > limits.EXPORT_FORK_BYTES else 0)


class _Worker:
    """Writes units. In the threads of one process all share one."""

    def __init__(self, ds: Dataset, folder: ConfinedFolder, large: LargeFiles, stopped: mmap.mmap) -> None:
        self._ds, self._folder, self._large, self._stopped = ds, folder, large, stopped
        self._memory = ThreadMemory()

    def write_unit(self, unit: Unit) -> Written:
        """Its files and links; its directories are made. Ends early when it is told to stop."""
        written = Written()
        rows = np.arange(unit.first, unit.end)
        names = ["path", "kind", "mode", "mtime_ns", "data"]
        columns = [self._ds.take_stored(rows, name) for name in names]
        paths, kinds, modes, times, data = (column.values.to_pylist() for column in columns)
        references = columns[-1].references
        marks = references.tolist() if references is not None else [False] * len(paths)
        here: list[str] = []
        parent = self._folder.open_folder(here)
        try:
            for at, path in enumerate(paths):
                if self._stopped[0]:
                    break
                parts = [] if path == filetree.ROOT else checked_parts(os.fsdecode(path))
                written.rows += 1
                if kinds[at] == filetree.DIRECTORY:
                    os.close(self._folder.open_folder(parts))
                    continue
                if not parts:
                    raise BadInput(f"row {unit.first + at} stands for the folder itself; clean the dataset")
                if parts[:-1] != here:
                    os.close(parent)
                    parent = -1
                    parent, here = self._folder.open_folder(parts[:-1]), parts[:-1]
                with writing("/".join(parts)):
                    if kinds[at] == filetree.SYMLINK:
                        _make_link(parent, parts[-1], data[at], times[at])
                    elif kinds[at] == filetree.FILE:
                        file = _File(parts[-1], unit.first + at, modes[at], times[at], data[at], marks[at])
                        written.bytes += self._write(parent, file)
                        written.files += 1
                    else:
                        raise BadInput(
                            f"path {'/'.join(parts)!r} is neither file, directory nor link; clean the dataset"
                        )
        finally:
            if parent >= 0:
                os.close(parent)
        return written

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
                window = self._memory.take(size + ALIGN)
                store.read_into(digest, window[:size])
                DirectFile(fd, size).write(window, size, 0)
        return int(size)


def _make_link(parent: int, name: str, target: bytes, mtime_ns: int) -> None:
    temporary = temporary_name()
    os.symlink(target, temporary, dir_fd=parent)
    os.utime(temporary, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
    os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)


def _finish_directories(ds: Dataset, folder: ConfinedFolder) -> None:
    """Modes and times, the deepest first."""
    found = []
    for _, columns in ds.iter_stored(["path", "kind", "mode", "mtime_ns"]):
        kinds = columns[1].values.to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(kinds == filetree.DIRECTORY).tolist()
        paths, modes, times = (columns[at].values for at in (0, 2, 3))
        found += [(paths[row].as_py(), modes[row].as_py(), times[row].as_py()) for row in rows]
    # The deepest first, and those of one folder together: that is opened once.
    for path, mode, mtime_ns in sorted(found, key=lambda entry: (-entry[0].count(b"/"), entry[0])):
        parts = [] if path == filetree.ROOT else checked_parts(os.fsdecode(path))
        with writing(Path(*parts)):
            if parts:
                above, name = folder.entry(parts)
                fd = os.open(name, _DIRECTORY, dir_fd=above)
            else:
                fd = folder.open_folder(parts)
            try:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
                os.fchmod(fd, mode & _MODES)
            finally:
                os.close(fd)
