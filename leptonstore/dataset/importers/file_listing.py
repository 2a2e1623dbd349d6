"""What a directory tree looks like without opening a file: the walk, and the memory of an earlier one.

A listing is what `lstat` says of every entry, in the order of `filetree`. It is remembered beside the store's index (in
the user's cache directory; deleting it costs time and nothing else), so that the next import of the same tree reads only
files whose path, size, times or inode have changed, as git and restic do. A file that was touched just before it was read
is never taken for unchanged: its clock may not have ticked between two writes ("racy git").
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.crypto import SealedDocuments
from leptonstore.dataset import filetree
from leptonstore.dataset.importers.reading import reading
from leptonstore.digest import Digest, digest_of
from leptonstore.errors import FormatDamaged

Stats = np.ndarray[Any, np.dtype[np.int64]]
# Columns of `Stats`: what lstat says of an entry.
MODE, SIZE, MTIME, CTIME, INODE, DEVICE = range(6)
# How long before a listing a change may go unnoticed. Linux stamps files when a clock of 1 to 10 ms ticks; some
# filesystems keep whole seconds, FAT two.
RACY_NS, RACY_COARSE_NS = 100_000_000, 2_000_000_000
_INT64_MAX = (1 << 63) - 1
_STATS = ["mode", "size", "mtime_ns", "ctime_ns", "inode", "device"]


@dataclass
class Listing:
    """paths: binary array. stats: int64, shape (entries, 6). started_ns: the clock when the walk began. skipped: entries
    that are neither file, directory nor link."""

    paths: pa.Array
    stats: Stats
    started_ns: int
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        files = (self.stats[:, MODE] & 0o170000) == stat.S_IFREG
        return int(self.stats[files, SIZE].sum())


def list_tree(root: Path) -> Listing:
    """Walk `root`, which is never left through a link. Raises SourceError. Memory: about 100 bytes and its path an entry."""
    started = time.time_ns()
    listing = _Collected()
    with reading(root):
        listing.add(filetree.ROOT, os.stat(root))
    top = os.fsencode(root)
    # A stack of our own, as trees may be deep; one loop a directory, as they may be large.
    stack = [(_entries(top), b"")]
    while stack:
        entries, prefix = stack[-1]
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed while we walked
            path = prefix + entry.name
            listing.add(path, found)
            if stat.S_ISDIR(found.st_mode):
                stack.append((_entries(entry.path), path + b"/"))
                break
        else:
            stack.pop()
    listing.close_batch()
    return Listing(pa.concat_arrays(listing.paths), np.concatenate(listing.stats), started, listing.skipped)


class _Collected:
    """Entries as they come, packed by the thousand: tuples of Python take six times the memory."""

    def __init__(self) -> None:
        self.paths: list[pa.Array] = []
        self.stats: list[Stats] = []
        self.skipped = 0
        self._names: list[bytes] = []
        self._rows: list[tuple[int, ...]] = []

    def add(self, path: bytes, found: os.stat_result) -> None:
        if filetree.kind_of(found.st_mode) is None:
            self.skipped += 1
            return
        self._names.append(path)
        # An inode is unsigned, and some filesystems use all of its bits.
        inode, device = found.st_ino & _INT64_MAX, found.st_dev & _INT64_MAX
        self._rows.append((found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, inode, device))
        if len(self._rows) >= 8192:
            self.close_batch()

    def close_batch(self) -> None:
        self.paths.append(pa.array(self._names, pa.binary()))
        self.stats.append(np.array(self._rows, np.int64).reshape(len(self._rows), len(_STATS)))
        self._names, self._rows = [], []


def _entries(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    with reading(Path(os.fsdecode(folder))), os.scandir(folder) as scan:
        found = list(scan)
    found.sort(key=lambda entry: entry.name)
    return iter(found)


# -- memory ------------------------------------------------------------------------------------------------------


class ListingMemory:
    """The listing that an earlier import of one tree left, and the commit that it made. Any error reads as "none"."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        ref: str,
        name: Callable[[Digest], Digest] = lambda digest: digest,
        sealer: SealedDocuments | None = None,
    ) -> None:
        """folder: a cache directory of the store. name, sealer: Store.stored_name and Store.sealer, so that an encrypted
        store leaves no path in the cache."""
        digest = digest_of(f"{os.path.realpath(root)}\0{ref}".encode(errors="surrogateescape"))
        self._path = folder / f"{name(digest)[:16].hex()}.arrow"
        self._sealer = sealer

    def load(self, commit: str) -> Listing | None:
        """The listing from which `commit` was made."""
        try:
            with self._open() as file:
                table = pa.ipc.open_file(file).read_all().combine_chunks()
            metadata = table.schema.metadata or {}
            if metadata.get(b"commit") != commit.encode():
                return None
            stats = np.stack([table.column(name).to_numpy() for name in _STATS], axis=1)
            paths = table.column("path").combine_chunks()
            return Listing(paths if isinstance(paths, pa.Array) else paths.chunk(0), stats, int(metadata[b"started"]))
        except (OSError, pa.ArrowException, KeyError, ValueError, IndexError, FormatDamaged):
            return None

    def _open(self) -> pa.NativeFile:
        if self._sealer is None:
            return pa.memory_map(str(self._path))
        return pa.BufferReader(self._sealer.open(self._path.read_bytes(), b"lepton listing", "listing"))

    def save(self, listing: Listing, commit: str) -> None:
        """Remember `listing`. A cache directory that cannot be written costs the next import its time."""
        columns = [listing.paths, *(pa.array(listing.stats[:, at]) for at in range(len(_STATS)))]
        table = pa.table(columns, names=["path", *_STATS])
        table = table.replace_schema_metadata(
            {b"commit": commit.encode(), b"started": str(listing.started_ns).encode()}
        )
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._sealer is None:
                _write(table, pa.OSFile(str(temporary), "wb"))
            else:
                sink = pa.BufferOutputStream()
                _write(table, sink)
                temporary.write_bytes(self._sealer.seal(memoryview(sink.getvalue()), b"lepton listing"))
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def unchanged_rows(now: Listing, before: Listing) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each entry of `now` its row in `before` when nothing about it has changed, else -1."""
    if now.paths.equals(before.paths):
        rows = np.arange(len(now), dtype=np.int64)
    else:
        found = pc.index_in(now.paths, value_set=before.paths)
        rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    same = (now.stats == before.stats[rows]).all(axis=1)
    # The times that count for a directory are those of its entries: its own size and change time say nothing.
    kinds = now.stats[:, MODE] & 0o170000
    kept = [MODE, MTIME]
    same |= (kinds == stat.S_IFDIR) & (now.stats[:, kept] == before.stats[rows][:, kept]).all(axis=1)
    newest = np.maximum(now.stats[:, MTIME], now.stats[:, CTIME])
    racy = np.where(now.stats[:, CTIME] % 1_000_000_000 == 0, RACY_COARSE_NS, RACY_NS)
    same &= (kinds != stat.S_IFREG) | (newest < before.started_ns - racy)
    return np.where(same & (rows >= 0), rows, -1)
