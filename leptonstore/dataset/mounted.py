"""A version as a directory: what the lepton:// filesystem shows below NAME@REF.

    a table                         data/part-00000-<8 digits of the commit>.parquet, … (parquet_view.py): up to 256 row groups each
    a directory of files            its files; symbolic links are followed inside of it
    a checkpoint, a model           its files

A part's name says of which version it is, so that a listing stays readable when the branch moves on.
"""

from __future__ import annotations

import os
import posixpath
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from leptonstore import limits
from leptonstore.dataset import filetree
from leptonstore.dataset.files import SCHEMA as FILES_SCHEMA
from leptonstore.dataset.kept import Kept
from leptonstore.dataset.parquet_view import ParquetTemplate, ParquetView
from leptonstore.dataset.tree import Leaf
from leptonstore.digest import Digest
from leptonstore.errors import FormatDamaged
from leptonstore.format.page import REFERENCE

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset
    from leptonstore.store import Store

DATA = "data"
_PART = re.compile(r"part-(\d{5,})-([0-9a-f]{8})\.parquet")
_LINKS_MAX = 40  # that are followed one after another (Linux's own bound)


class Entry(NamedTuple):
    """A file or a directory; `size` of a file in bytes, 0 of a directory."""

    name: str
    is_file: bool
    size: int = 0


class Mounted(ABC):
    """What stands below a version. Paths are relative, without a slash at either end; "" is the version itself. Any thread."""

    @abstractmethod
    def entry(self, path: str) -> Entry | None:
        """What stands at `path`, None when there is nothing."""

    @abstractmethod
    def entries(self, path: str) -> list[Entry]:
        """What stands in the directory `path`, by name (names are last parts)."""

    @abstractmethod
    def reader(self, path: str) -> Callable[[int, int], bytes]:
        """A function from a range [start, end) to the bytes of the file `path`. Raises ChunkMissing or ChunkCorrupt."""


def mount(ds: Dataset) -> Mounted:
    """The directory of a version."""
    if filetree.is_file_tree(ds.schema):
        return _Files(ds, _tree_rows(ds))
    if ds.schema.equals(FILES_SCHEMA):
        return _Files(ds, _table_rows(ds))
    return _Parts(ds)


def commit_of_part(path: str) -> str | None:
    """The first digits of the commit in the name of a part, None for other names."""
    folder, _, name = path.rpartition("/")
    found = _PART.fullmatch(name) if folder == DATA else None
    return found[2] if found else None


class _Parts(Mounted):
    """A table as Parquet files."""

    def __init__(self, ds: Dataset) -> None:
        self._ds, self._template = ds, ParquetTemplate(ds.schema)
        self._views: Kept[ParquetView] = Kept(limits.PARQUET_VIEWS_BYTES)

    def _count(self) -> int:
        groups = len(self._ds.leaves.digests)
        return max(1, -(-groups // limits.PARQUET_GROUPS_MAX))  # an empty table has one part: its schema can be read

    def _name(self, number: int) -> str:
        return f"part-{number:05d}-{self._ds.commit[:8]}.parquet"

    def _view(self, number: int) -> ParquetView:
        view = self._views.get(number)
        if view is None:
            first = number * limits.PARQUET_GROUPS_MAX
            starts, digests = self._ds.leaves.starts, self._ds.leaves.digests
            leaves = [
                Leaf(int(starts[at]), int(starts[at + 1]), digests[at])
                for at in range(first, min(first + limits.PARQUET_GROUPS_MAX, len(digests)))
            ]
            view = ParquetView(self._ds, leaves, self._template)
            self._views.add(number, view, view.memory_bytes)
        return view

    def _number(self, path: str) -> int | None:
        folder, _, name = path.rpartition("/")
        found = _PART.fullmatch(name) if folder == DATA else None
        number = int(found[1]) if found else -1
        return number if 0 <= number < self._count() and name == self._name(number) else None

    def entry(self, path: str) -> Entry | None:
        if path in ("", DATA):
            return Entry(path, False)
        number = self._number(path)
        return None if number is None else Entry(self._name(number), True, self._view(number).size)

    def entries(self, path: str) -> list[Entry]:
        if path == "":
            return [Entry(DATA, False)]
        return [Entry(self._name(number), True, self._view(number).size) for number in range(self._count())]

    def reader(self, path: str) -> Callable[[int, int], bytes]:
        number = self._number(path)
        assert number is not None
        return self._view(number).read


class _Row(NamedTuple):
    """A file of a table of files: where it stands, and its size; of a link its target."""

    row: int
    size: int
    link: str | None = None


class _Files(Mounted):
    """A table of files as those files. Memory: about 300 bytes a file."""

    def __init__(self, ds: Dataset, files: dict[str, _Row | None]) -> None:
        """files: path -> row, None for a directory."""
        self._ds, self._files = ds, files
        self._children: dict[str, set[str]] = {"": set()}
        for path in list(files):
            while path:
                above, _, name = path.rpartition("/")
                known = above in self._children
                self._children.setdefault(above, set()).add(name)
                if known:
                    break
                path = above
        for path, row in files.items():
            if row is None:
                self._children.setdefault(path, set())

    def _followed(self, path: str) -> str:
        """Where a path leads when links are followed, part by part; itself when one leads nowhere inside."""
        links = 0
        walked, parts = "", path.split("/") if path else []
        while parts:
            name = parts.pop(0)
            walked = f"{walked}/{name}" if walked else name
            row = self._files.get(walked)
            if row is None or row.link is None:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(walked), row.link))
            links += 1
            if links > _LINKS_MAX or target.startswith(("/", "..")):
                return path
            parts = [*(() if target == "." else target.split("/")), *parts]
            walked = ""
        return walked

    def entry(self, path: str) -> Entry | None:
        there = self._followed(path)
        name = path.rpartition("/")[2]
        if there in self._children:
            return Entry(name, False)
        row = self._files.get(there)
        return None if row is None or row.link is not None else Entry(name, True, row.size)

    def entries(self, path: str) -> list[Entry]:
        found = (
            self.entry(f"{path}/{name}" if path else name) for name in sorted(self._children[self._followed(path)])
        )
        return [entry for entry in found if entry is not None]

    def reader(self, path: str) -> Callable[[int, int], bytes]:
        row = self._files[self._followed(path)]
        assert row is not None
        return StoredBytes(self._ds, row.row, "data").read


def _tree_rows(ds: Dataset) -> dict[str, _Row | None]:
    files: dict[str, _Row | None] = {}
    for first, (paths, kinds, sizes) in ds.iter_stored(["path", "kind", "size"]):
        rows = zip(paths.values.to_pylist(), kinds.values.to_pylist(), sizes.values.to_pylist(), strict=True)
        for at, (path, kind, size) in enumerate(rows, first):
            if path == filetree.ROOT:
                continue
            name = os.fsdecode(path)
            if kind == filetree.SYMLINK:
                files[name] = _Row(at, 0, os.fsdecode(ds[at]["data"]))
            else:
                files[name] = None if kind == filetree.DIRECTORY else _Row(at, size)
    return files


def _table_rows(ds: Dataset) -> dict[str, _Row | None]:
    files: dict[str, _Row | None] = {}
    for first, (paths, data) in ds.iter_stored(["path", "data"]):
        sizes = data.sizes().tolist()
        for at, path in enumerate(paths.values.to_pylist()):
            large = data.references is not None and data.references[at]
            size = REFERENCE.unpack(data.values[at].as_py())[1] if large else sizes[at]
            files[path] = _Row(first + at, size)
    return files


class StoredBytes:
    """One value of a column of bytes or text, read in ranges: of a large one, the pieces that a range covers.

    `size` in bytes, None for a null. Any thread. Raises ChunkMissing or ChunkCorrupt.
    """

    def __init__(self, ds: Dataset, row: int, name: str) -> None:
        self._ds, self._row, self._name = ds, row, name
        column = ds.take_stored(np.array([row], np.int64), name)
        value = column.values[0].as_py()
        value = value.encode() if isinstance(value, str) else value
        self.size: int | None = None if value is None else len(value)
        self._pieces: list[tuple[Digest, int]] = []
        self._value: bytes | None = value
        if column.references is not None and column.references[0]:
            digest, size = REFERENCE.unpack(value)
            self.size = size
            with ds.errors_at(row, name):
                pieces = self._store.pieces(digest)
            self._pieces = list(pieces) if pieces is not None else [(digest, size)]
            self._value = None
            if sum(length for _, length in self._pieces) != size:
                raise FormatDamaged(f"{ds.label} row {row} column {name!r}: its pieces do not add up to {size} bytes")
        self._starts = list(accumulate((length for _, length in self._pieces), initial=0))
        self._kept: Kept[bytes] = Kept(limits.FILE_PIECES_BYTES)

    @property
    def _store(self) -> Store:
        return self._ds.store

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), cut at the end of the value."""
        if self._value is not None:
            return self._value[start:end]
        out = bytearray()
        first = bisect_right(self._starts, start) - 1
        for number, (digest, length) in islice(enumerate(self._pieces), first, None):
            at = self._starts[number]
            if at >= end:
                break
            piece = self._kept.get(number)
            if piece is None:
                with self._ds.errors_at(self._row, self._name):
                    piece = self._kept.add(number, self._store.get(digest), length)
            out += piece[max(start - at, 0) : end - at]
        return bytes(out)
