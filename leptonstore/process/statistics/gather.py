"""Gathering: the sketches of all chosen columns of a version, each block from the memo or from its pages.

    nodes -> blocks (blocks.py) -> what the memo knows -> the pages of the rest, read together -> sketches, kept -> merged in row order

Blocks are worked on in a few threads (decoding, sorting and hashing let go of the interpreter) and merged in row order, always the same
ones with the same ones: what comes out depends on the version alone, not on threads, nor on what was kept. Memory: THREADS + 2 blocks,
64 sketches of a column for each power of 64 of their number.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.pages import Stretch
from leptonstore.dataset.scan import slice_ends
from leptonstore.dataset.tree import Rows
from leptonstore.dataset.values import Column, concat
from leptonstore.digest import digest_of
from leptonstore.errors import FormatDamaged
from leptonstore.format.node import Part
from leptonstore.process.memo import Memo
from leptonstore.process.statistics.balance import Classes, Table
from leptonstore.process.statistics.blocks import Block, blocks_of
from leptonstore.process.statistics.column import ColumnSketch, Kind, Watched
from leptonstore.process.statistics.correlation import CoMoments, correlated

T = TypeVar("T")
THREADS_MAX = 8
_AHEAD = 2  # blocks that are done before they are merged, beside those under way


class Merger(Generic[T]):
    """Merges sketches that come in row order, STATISTICS_MERGED_AT_ONCE at a time, and what comes of these likewise."""

    def __init__(self, merged: Callable[[Sequence[T]], T]) -> None:
        self._merged = merged
        self._levels: list[list[T]] = [[]]

    def add(self, sketch: T, level: int = 0) -> None:
        """The next one."""
        if level == len(self._levels):
            self._levels.append([])
        held = self._levels[level]
        held.append(sketch)
        if len(held) == limits.STATISTICS_MERGED_AT_ONCE:
            self._levels[level] = []
            self.add(self._merged(held), level + 1)

    def result(self) -> T | None:
        """All of them; None when there were none."""
        rest = [sketch for held in reversed(self._levels) for sketch in held]
        return self._merged(rest) if rest else None


@dataclass
class Gathered:
    """Sketches of a version or a view. columns: in the order of `watched`. blocks: pieces of columns, `reused` of them from the memo."""

    watched: list[Watched]
    columns: list[ColumnSketch]
    classes: list[Classes]
    tables: list[list[Table]]
    correlated: tuple[list[str], list[str]]
    moments: CoMoments | None
    blocks: int = 0
    reused: int = 0

    def sketch(self, name: str) -> ColumnSketch:
        """Of one column."""
        return next(sketch for one, sketch in zip(self.watched, self.columns, strict=True) if one.field.name == name)


@dataclass
class _Done:
    """What was made of one block: of each watched column its pieces, of each label column its table, of the numbers their co-moments."""

    rows: int
    columns: list[list[ColumnSketch]]
    tables: list[Table]
    moments: CoMoments | None
    blocks: int = 0
    reused: int = 0
    kept: dict[bytes, bytes] = field(default_factory=dict)  # to be put into the memo


def gather(
    ds: Dataset,
    names: Sequence[str],
    memo: Memo | None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Gathered:
    """Sketches of some columns of a version, or of a view (of which nothing is kept).

    threads: None: as many as there are processors, THREADS_MAX at most. progress: is told how many rows are done.
    Raises ChunkMissing, ChunkCorrupt, FormatDamaged; MissingExtra for image files without Pillow.
    """
    work = _Work(ds, names, memo if ds.selection is None else None)
    threads = threads or min(len(os.sched_getaffinity(0)), THREADS_MAX)
    mergers = [Merger(ColumnSketch.merged) for _ in work.watched]
    moments = Merger(CoMoments.merged)
    tables: list[list[Table]] = [[] for _ in work.classes]
    blocks = reused = rows = 0
    for done in _in_order(work.jobs(), threads):
        if memo is not None and done.kept:
            memo.put_many(done.kept)
        for merger, pieces in zip(mergers, done.columns, strict=True):
            for piece in pieces:
                merger.add(piece)
        for held, table in zip(tables, done.tables, strict=True):
            held[:] = [held[0] + table] if held else [table]
        if done.moments is not None:
            moments.add(done.moments)
        blocks, reused, rows = blocks + done.blocks, reused + done.reused, rows + done.rows
        if progress is not None:
            progress(rows)
    sketches = [merger.result() or ColumnSketch.empty(one) for merger, one in zip(mergers, work.watched, strict=True)]
    return Gathered(work.watched, sketches, work.classes, tables, work.correlated, moments.result(), blocks, reused)


def _in_order(jobs: Iterator[Callable[[], _Done]], threads: int) -> Iterator[_Done]:
    """The results of jobs, in their order; some are under way while one is looked at."""
    if threads == 1:
        yield from (job() for job in jobs)
        return
    waiting: deque[Future[_Done]] = deque()
    with ThreadPoolExecutor(threads, "lepton-statistics") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) >= threads + _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Work:
    """What is asked of each block."""

    def __init__(self, ds: Dataset, names: Sequence[str], memo: Memo | None) -> None:
        self.ds, self.memo = ds, memo
        self.watched = Watched.of(ds.schema, names)
        self.classes = Classes.of(ds.schema, names)
        self.correlated = correlated(self.watched)
        numbers = self.correlated[0] if len(self.correlated[0]) > 1 else []
        # Columns that are looked at together: rows of all of them, a block at a time.
        self._together = [one.reads for one in self.classes] + ([tuple(numbers)] if numbers else [])
        self._again = {name for some in self._together for name in some} | {
            one.source for one in self.watched if one.path
        }
        self._fields = {field.name: field for field in ds.schema}
        self._index = {name: at for at, name in enumerate(ds.schema.names)}

    def jobs(self) -> Iterator[Callable[[], _Done]]:
        """One for each block."""
        if self.ds.selection is None:
            for block in blocks_of(self.ds):
                yield lambda block=block: self._block(block)  # type: ignore[misc]
            return
        names = list(dict.fromkeys([one.source for one in self.watched] + [n for some in self._together for n in some]))
        held: list[list[Column]] = []
        first = rows = 0
        for _, found in self.ds.iter_stored(names):
            held.append(found)
            rows += len(found[0].values)
            size = sum(one.values.nbytes + one.referenced_bytes() for some in held for one in some)
            if len(held) == limits.STATISTICS_BLOCK_GROUPS_AVG or size > limits.STATISTICS_BLOCK_BYTES:
                yield lambda held=held, first=first: self._view(names, held, first)  # type: ignore[misc]
                held, first = [], rows
        if held:
            yield lambda: self._view(names, held, first)

    # -- a block of a version ------------------------------------------------------------------------------------------

    def _block(self, block: Block) -> _Done:
        done = _Done(block.rows, [[] for _ in self.watched], [], None)
        pieces: list[tuple[int, int, tuple[Part, ...], bytes]] = []  # watched column, first row, pages, key
        for at, watched in enumerate(self.watched):
            for first, parts in block.pieces(self._index[watched.source]):
                pieces.append((at, first, parts, _key(watched.recipe(), [parts])))
        together = [[block.parts(self._index[name]) for name in names] for names in self._together]
        keys = [key for *_, key in pieces] + [
            _key(self._recipe(number), parts) for number, parts in enumerate(together)
        ]
        known = [None] * len(keys) if self.memo is None else self.memo.get_many(keys)
        read = _Reading(self.ds, block, self._again)
        missing: list[int] = []
        found: dict[int, ColumnSketch] = {}
        for number, (at, _, parts, _) in enumerate(pieces):
            watched, rows = self.watched[at], sum(part.rows for part in parts)
            if watched.kind is Kind.COUNTED and not watched.path:
                found[number] = ColumnSketch(rows, sum(part.nulls for part in parts))
                continue
            done.blocks += 1
            sketch = _known(known[number], lambda data: ColumnSketch.decode(data, watched, rows))  # noqa: B023 - called at once
            if sketch is None:
                missing.append(number)
            else:
                done.reused += 1
                found[number] = sketch
        for number in missing:
            at, first, parts, key = pieces[number]
            watched = self.watched[at]
            column = watched.taken_from(read.column(self._fields[watched.source], first, parts))
            found[number] = sketch = ColumnSketch.of(watched, column, self._resolver(watched.field, first))
            done.kept[key] = sketch.encode()
        for number, (at, *_) in enumerate(pieces):
            done.columns[at].append(found[number])
        self._joint(done, block, read, known[len(pieces) :], keys[len(pieces) :])
        if self.memo is None:
            done.kept = {}
        return done

    def _recipe(self, number: int) -> str:
        what = self.classes[number].recipe if number < len(self.classes) else "correlation 1"
        return " ".join([what, *(str(self._fields[name].type) for name in self._together[number])])

    def _joint(
        self, done: _Done, block: Block, read: _Reading, known: Sequence[bytes | None], keys: Sequence[bytes]
    ) -> None:
        for number, names in enumerate(self._together):
            data, key = known[number], keys[number]
            classes = self.classes[number] if number < len(self.classes) else None
            if classes is not None:
                table = _known(data, lambda data: classes.decode(data, block.rows))  # noqa: B023 - called at once
                if table is None:
                    table = classes.count(read.together(names))
                    done.kept[key] = classes.encode(table)
                done.tables.append(table)
                continue
            moments = _known(data, lambda data: CoMoments.decode(data, len(names), block.rows))  # noqa: B023
            if moments is None:
                moments = CoMoments.of(read.together(names))
                done.kept[key] = moments.encode()
            done.moments = moments

    def _resolver(self, field_: pa.Field, first: int) -> Callable[[Column], Iterator[pa.Array]]:
        """What gives the plain values of rows of the version from `first` on."""

        def resolved(column: Column) -> Iterator[pa.Array]:
            rows = np.arange(first, first + len(column.values), dtype=np.int64)
            return _resolved(self.ds, column, field_, rows)

        return resolved

    # -- some rows of a view -----------------------------------------------------------------------------------------

    def _view(self, names: Sequence[str], held: list[list[Column]], first: int) -> _Done:
        found = {name: concat(list(some)) for name, some in zip(names, zip(*held, strict=True), strict=True)}
        rows = len(found[names[0]].values)
        assert self.ds.selection is not None
        base = self.ds.selection[first : first + rows]
        done = _Done(rows, [], [], None, blocks=len(self.watched))
        for watched in self.watched:
            column = watched.taken_from(found[watched.source])
            resolved = partial(_resolved, self.ds, field_=watched.field, rows=base)
            done.columns.append([ColumnSketch.of(watched, column, resolved)])
        for number, some in enumerate(self._together):
            arrays = [found[name].values for name in some]
            if number < len(self.classes):
                done.tables.append(self.classes[number].count(arrays))
            else:
                done.moments = CoMoments.of(arrays)
        return done


class _Reading:
    """Columns of one block, read once. again: names of those that are asked for several times; they are kept for that."""

    def __init__(self, ds: Dataset, block: Block, again: set[str]) -> None:
        self._ds, self._block, self._again = ds, block, again
        self._read: dict[tuple[int, str], Column] = {}

    def column(self, field_: pa.Field, first: int, parts: tuple[Part, ...]) -> Column:
        """A piece of a column."""
        key = first, field_.name
        found = self._read.get(key)
        if found is None:
            (found,) = self._ds.pages.read([Stretch(first, parts, field_)])
            if field_.name in self._again:
                self._read[key] = found
        return found

    def together(self, names: Sequence[str]) -> list[pa.Array]:
        """All rows of some number columns."""
        arrays = []
        for name in names:
            index = self._ds.schema.get_field_index(name)
            field_ = self._ds.schema.field(index)
            pieces = [self.column(field_, first, parts) for first, parts in self._block.pieces(index)]
            arrays.append(concat(pieces).values)
        return arrays


def _resolved(ds: Dataset, column: Column, field_: pa.Field, rows: Rows) -> Iterator[pa.Array]:
    at = 0
    for stop in slice_ends([column], len(column.values)):
        yield ds.ask([column.slice(at, stop)], [field_], rows[at:stop]).batch().column(0)
        at = stop


def _key(recipe: str, pages: Sequence[tuple[Part, ...]]) -> bytes:
    """What a sketch is kept under: its recipe, and the digests of the pages that it is of."""
    digests = b"".join(digest_of(b"".join(part.digest for part in parts)) for parts in pages)
    return digest_of(b"lepton statistics\0" + recipe.encode() + b"\0" + digests)


def _known(data: bytes | None, decode: Callable[[bytes], Any]) -> Any:
    """What was kept; None when there is nothing, or it is damaged: it is made again."""
    if data is None:
        return None
    try:
        return decode(data)
    except FormatDamaged:
        return None
