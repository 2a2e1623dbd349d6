"""Import of a directory of files, byte for byte (leptonstore.dataset.filetree says what is kept).

    list the tree (file_listing.py) -> find what is unchanged -> read, hash and compress the rest on all cores (file_reader.py) ->
    rows in order (file_batch.py)

Several small files are one job; a large file is read by one job in windows, whose pieces all threads compress. Memory is
bounded by the windows and by what the store lets be in flight, not by the tree.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leptonstore import limits
from leptonstore.dataset import filetree
from leptonstore.dataset.importers.file_batch import FileBatch, Rows
from leptonstore.dataset.importers.file_listing import (
    MODE,
    MTIME,
    SIZE,
    Listing,
    ListingMemory,
    list_tree,
    unchanged_rows,
)
from leptonstore.dataset.importers.file_reader import FileReader
from leptonstore.dataset.importers.reading import name_of, reading
from leptonstore.dataset.importers.small_files import SmallFiles
from leptonstore.dataset.source import Source
from leptonstore.dataset.values import Column
from leptonstore.errors import SourceError
from leptonstore.store import Store
from leptonstore.tiers.external import root_of

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset

SWITCH_INTERVAL_S = 0.0005


def open_source(path: Path, paranoid: bool = False, reference: bool = False) -> Source:
    """Every file, directory and link below `path`. Lists the tree; opens no file.

    paranoid: read every file, also those whose size, times and inode are as they were at the last import.
    reference: contents that would be chunks of their own stay in the files, and the store keeps where that is.
    Raises SourceError.
    """
    with reading(path):
        if not path.is_dir():
            raise SourceError(f"{path} is not a folder; give the folder whose files are to be kept", str(path))
    tree = _Tree(path, list_tree(path), paranoid, reference)
    lineage = {"format": "files", "root": name_of(path)}
    notes = tree.listing.notes
    if tree.listing.skipped:
        notes.append(f"{tree.listing.skipped} devices, pipes or sockets were left out")
    return Source(
        filetree.SCHEMA,
        ("path",),
        batches=lambda: iter(()),
        rows=len(tree.listing),
        lineage=lineage,
        stored=tree.columns,
        unchanged=tree.unchanged,
        published=tree.remember,
        notes=notes,
    )


@dataclass
class _Tree:
    """One import of one tree."""

    root: Path
    listing: Listing
    paranoid: bool
    reference: bool
    _before: Rows | None = field(default=None, init=False)  # of each entry: its row in the head commit, or -1

    def _memory(self, store: Store, ref: str) -> ListingMemory:
        return ListingMemory(store.cache_path("trees"), self.root, ref, store.stored_name, store.sealer)

    def unchanged(self, store: Store, ref: str, head: Dataset) -> bool:
        """Whether every entry is as `head`, the last version on `ref`, has it."""
        before = None if self.paranoid else self._memory(store, ref).load(head.commit)
        if before is None:
            return False
        self._before = unchanged_rows(self.listing, before)
        return len(before) == len(self.listing) and bool((self._before == np.arange(len(before))).all())

    def remember(self, store: Store, ref: str, commit: str) -> None:
        """After the commit."""
        self._memory(store, ref).save(self.listing, commit)

    def columns(self, store: Store, head: Dataset | None) -> Iterator[list[Column]]:
        """The rows, some thousand at a time; file contents are put into `store`."""
        threads = len(os.sched_getaffinity(0))
        before = self._before if head is not None and self._before is not None else np.full(len(self.listing), -1)
        ahead: deque[tuple[list[Future[None]], FileBatch]] = deque()
        with (
            _short_turns(),
            self._small_files(before, threads) as small,
            ThreadPoolExecutor(threads, "lepton-piece") as pieces,
            ThreadPoolExecutor(threads, "lepton-read") as pool,
        ):
            number = store.references.add_root(root_of(self.root)) if self.reference else None
            reader = FileReader(self.root, store, self.listing, pieces, small, number)
            try:
                for first, end in _batches(self.listing):
                    batch = FileBatch(reader, first, end, before[first:end], head)
                    jobs = [pool.submit(batch.read_small, job) for job in batch.small_jobs()]
                    ahead.append(([*jobs, *(pool.submit(batch.read, job) for job in batch.jobs())], batch))
                    if len(ahead) > 2:
                        yield _finished(*ahead.popleft())
                while ahead:
                    yield _finished(*ahead.popleft())
            except BaseException:
                reader.stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if reader.vanished:
            self.listing.notes.append(f"{reader.vanished} files vanished while the tree was read")
        if reader.changed:
            self.listing.notes.append(
                f"{len(reader.changed)} files changed while they were read; import again for a clean copy"
            )
            self.listing.stats[reader.changed, MTIME] = -1  # never taken for unchanged

    def _small_files(self, before: Rows, processes: int) -> contextlib.AbstractContextManager[SmallFiles | None]:
        """Processes for reading small files, when there are enough of these to be worth it."""
        stats = self.listing.stats
        wanted = ((stats[:, MODE] & 0o170000) == stat.S_IFREG) & (stats[:, SIZE] <= limits.TREE_INLINE_BYTES_MAX)
        if int((wanted & (before < 0)).sum()) < limits.SMALL_FILES_MIN or not SmallFiles.possible():
            return contextlib.nullcontext()
        return SmallFiles(processes)


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Threads that hash and compress ask for the interpreter every millisecond or so; the usual turn of 5 ms starves them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _batches(listing: Listing) -> Iterator[tuple[int, int]]:
    """[first, end) of rows that are read together: bounded rows and, but for single large files, bytes."""
    sizes = np.where((listing.stats[:, MODE] & 0o170000) == stat.S_IFREG, listing.stats[:, SIZE], 0)
    sums = np.cumsum(np.minimum(sizes, limits.IMPORT_BATCH_BYTES_MAX))
    first = 0
    while first < len(listing):
        base = int(sums[first - 1]) if first else 0
        end = int(np.searchsorted(sums, base + 4 * limits.IMPORT_BATCH_BYTES_MAX, side="right"))
        end = min(max(end, first + 1), first + limits.IMPORT_BATCH_ROWS_MAX)
        yield first, end
        first = end


def _finished(jobs: list[Future[None]], batch: FileBatch) -> list[Column]:
    for job in jobs:
        job.result()
    return batch.columns()
