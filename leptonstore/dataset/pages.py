"""Reading pages: which parts of a column some rows stand in, and what those parts hold.

    rows -> row groups (nodes) -> parts -> pages: kept, or read, all that one call needs together -> values in the order asked

Decoded pages are kept up to PAGE_CACHE_BYTES. Where the reader is the hot cache of the host, only those are that hold hardly more than
references (`is_directory`): the rest is there once for all processes, and decoding it copies nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import values as column_values
from leptonstore.dataset.tree import Leaves
from leptonstore.dataset.values import Column
from leptonstore.errors import ChunkCorrupt, ChunkMissing, FormatDamaged
from leptonstore.format.node import Part, RowGroup
from leptonstore.format.page import decode_page
from leptonstore.tiers.chunks import ChunkReader

Rows = np.ndarray[Any, np.dtype[np.int64]]


def is_directory(part: Part) -> bool:
    """Whether a page is mostly references: small, needed again and again, and dear to miss."""
    return part.has_references and part.page_bytes <= limits.DIRECTORY_ROW_BYTES_MAX * part.rows


class PlacedPart(NamedTuple):
    """A part of a column, and the row of the version that it begins with."""

    part: Part
    first: int
    field: pa.Field


class Pages:
    """The pages of one version. Any thread.

    named:   the version, as errors call it.
    on_host: the reader keeps what it gives for all processes of the host; then what is returned here is a copy of it.
    """

    def __init__(self, chunks: ChunkReader, leaves: Leaves, schema: pa.Schema, named: str, on_host: bool) -> None:
        self._chunks, self._leaves, self._schema = chunks, leaves, schema
        self._named, self._on_host = named, on_host
        self._groups: dict[int, RowGroup] = {}
        self._firsts: dict[tuple[int, int], Rows] = {}
        self._kept: OrderedDict[tuple[bytes, str], Column] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def gather(self, rows: Rows, fields: Sequence[pa.Field], keep: bool = True) -> list[Column]:
        """The values of some rows of the version, as the pages keep them, in the order asked; at least one row.

        keep: whether pages are kept for the next call. Raises ChunkMissing, ChunkCorrupt or FormatDamaged, with the place.
        """
        spread = [self.spread(rows, field) for field in fields]
        columns = iter(self._columns([placed for used, _ in spread for placed in used], keep))
        return [self._assembled(rows, used, which, columns) for used, which in spread]

    def spread(self, rows: Rows, field: pa.Field) -> tuple[list[PlacedPart], Rows]:
        """The parts of a column that rows of the version stand in, ascending; and in which of them each row stands."""
        groups = np.unique(np.searchsorted(self._leaves.starts, rows, side="right") - 1).tolist()
        self._load(groups)
        column = self._schema.get_field_index(field.name)
        parts = [part for index in groups for part in self._groups[index].columns[column]]
        firsts = np.concatenate([self._firsts_of(index, column) for index in groups])
        used, which = np.unique(np.searchsorted(firsts, rows, side="right") - 1, return_inverse=True)
        return [PlacedPart(parts[at], int(firsts[at]), field) for at in used.tolist()], which

    def _load(self, groups: list[int]) -> None:
        """Read the nodes that are not known yet."""
        missing = [index for index in groups if index not in self._groups]
        if not missing:
            return
        try:
            self._groups.update(zip(missing, self._leaves.groups(missing), strict=True))
        except (ChunkCorrupt, ChunkMissing):
            starts = self._leaves.starts
            for index in missing:
                with told_at(f"{self._named} rows {starts[index]}-{starts[index + 1] - 1} (a tree node)"):
                    list(self._leaves.groups([index]))
            raise

    def _firsts_of(self, index: int, column: int) -> Rows:
        """The first rows of the parts of a column of a row group."""
        found = self._firsts.get((index, column))
        if found is None:
            rows = [part.rows for part in self._groups[index].columns[column]]
            found = int(self._leaves.starts[index]) + np.cumsum([0, *rows[:-1]], dtype=np.int64)
            self._firsts[index, column] = found
        return found

    def _columns(self, wanted: list[PlacedPart], keep: bool) -> list[Column]:
        found: dict[tuple[bytes, str], Column] = {}
        missing: dict[tuple[bytes, str], PlacedPart] = {}
        with self._lock:
            for placed in wanted:
                key = placed.part.digest, placed.field.name
                kept = self._kept.get(key)
                if kept is None:
                    missing[key] = placed
                else:
                    self._kept.move_to_end(key)
                    found[key] = kept
        # Read outside the lock, so that several threads decode several pages at once; two of one page is harmless.
        for key, column in zip(missing, self._read(list(missing.values())), strict=True):
            found[key] = column
            if keep and (not self._on_host or is_directory(missing[key].part)):
                self._keep(key, column)
        return [found[placed.part.digest, placed.field.name] for placed in wanted]

    def _read(self, missing: list[PlacedPart]) -> Iterator[Column]:
        try:
            pages = self._chunks.get_many([placed.part.digest for placed in missing])
            for placed, data in zip(missing, pages, strict=True):
                part, where = placed.part, self._where(placed)
                page = decode_page(bytes(data) if self._on_host and is_directory(part) else data, placed.field.type)
                if len(page.values) != part.rows:
                    raise FormatDamaged(f"{where}: page has {len(page.values)} rows where its node says {part.rows}")
                yield Column(page.values, page.references)
        except (ChunkCorrupt, ChunkMissing):
            for placed in missing:
                with told_at(self._where(placed)):
                    self._chunks.get(placed.part.digest)
            raise

    def _where(self, placed: PlacedPart) -> str:
        last = placed.first + placed.part.rows - 1
        return f"{self._named} rows {placed.first}-{last} column {placed.field.name!r}"

    def _keep(self, key: tuple[bytes, str], column: Column) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = column
            self._kept_bytes += column.values.nbytes
            while self._kept_bytes > limits.PAGE_CACHE_BYTES and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].values.nbytes

    def _assembled(self, rows: Rows, used: list[PlacedPart], which: Rows, columns: Iterator[Column]) -> Column:
        """The rows of one column; `columns` has its parts next."""
        if len(used) == 1:
            return self._picked(next(columns), rows - used[0].first)
        order = np.argsort(which, kind="stable")
        cuts = np.flatnonzero(np.diff(which[order])) + 1
        pieces = [
            self._picked(next(columns), rows[chosen] - placed.first)
            for placed, chosen in zip(used, np.split(order, cuts), strict=True)
        ]
        column = column_values.concat(pieces)
        if bool((order[1:] > order[:-1]).all()):
            return column
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return column_values.take(column, back)

    def _picked(self, column: Column, rows: Rows) -> Column:
        # Of what lies in the host's cache nothing is given away uncopied: whoever kept it would pin it there.
        if not self._on_host and len(rows) == len(column.values) and bool((np.diff(rows) == 1).all()):
            return column
        return column_values.take(column, rows)


@contextlib.contextmanager
def told_at(where: str) -> Iterator[None]:
    """Inside, a chunk that is missing or corrupt is named with the place in the dataset that it costs."""
    try:
        yield
    except ChunkCorrupt as error:
        raise error.at(where) from None
    except ChunkMissing as error:
        raise ChunkMissing(error.digest, where) from None
