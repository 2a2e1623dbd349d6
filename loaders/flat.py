"""A column of lists as one array: the values of all rows, one after another, and where each row begins.

    rows [[5, 6], [], [7]]   ->   values [5, 6, 7], offsets [0, 2, 2, 3]

What reads the column by place (windows and packs of tokens) then never looks at rows, and a row is a slice. Where the values fit into
`bytes_max` they are decoded once, into one contiguous stretch of memory; of a dataset that is read through the host's hot cache it is
there, once for all processes, mapped. Where they do not fit, only the offsets are kept (8 bytes a row; decoding the column once is the
price of knowing them), and the rows that a request touches are read for it.

    one stretch of memory:  offsets, int64, rows + 1 | values
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loaders.source import (
    ARENA_BYTES_MAX,
    ColumnSource,
    Keys,
    SchemaError,
    cached_bytes,
    fingerprint_of,
    in_background,
    stored_order,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from loaders.source import Dataset

Longs: TypeAlias = npt.NDArray[np.int64]

FLAT_VERSION = "lepton.flat.1"  # of the layout in the hot cache
_OFFSET_BYTES = 8
GROUPS_TOGETHER = 256  # row groups whose nodes are read at a time: 1 KiB and more each


class FlatColumn:
    """The column `name` of a dataset or view, in the view's order. A null list is an empty one. Any thread; pickles, without values.

    bytes_max: of the values that are kept decoded (default: limits.ARENA_BYTES_MAX).

    Raises ValueError for a column that does not exist or is no list of numbers, SchemaError for a null in a list; both when first used
    or before.
    """

    def __init__(self, dataset: Dataset, name: str, bytes_max: int | None = None) -> None:
        self.dtype, self.item_shape = _item_of(dataset, name)
        self._rows = ColumnSource(dataset, [name], 0)
        self.dataset, self.name = self._rows.dataset, name
        self._bytes_max = ARENA_BYTES_MAX if bytes_max is None else bytes_max
        self._arrays: tuple[Longs, npt.NDArray[Any] | None] | None = None
        self._lock = threading.Lock()

    @property
    def offsets(self) -> Longs:
        """int64, rows + 1: row i has places [offsets[i], offsets[i + 1])."""
        return self._filled()[0]

    @property
    def values(self) -> npt.NDArray[Any] | None:
        """All values, (total, *item_shape), not to be written to; None when they do not fit."""
        return self._filled()[1]

    def rows(self, rows: Longs) -> list[npt.NDArray[Any]]:
        """The values of some rows, (n, *item_shape), in the order asked; each its own memory. Only where `values` is not None."""
        values, offsets = self.values, self.offsets
        assert values is not None
        bounds = zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
        return [values[start:end].copy() for start, end in bounds]

    @property
    def total(self) -> int:
        """How many values there are."""
        return int(self.offsets[-1])

    @property
    def fingerprint(self) -> str:
        """Identifies the values and their order."""
        return fingerprint_of([FLAT_VERSION, self.dataset.fingerprint, self.name])

    def runs(self, starts: Longs, lengths: Longs) -> tuple[npt.NDArray[Any], Longs]:
        """(an array, places in it): the values at [starts[i], starts[i] + lengths[i]) of the whole stand at places[i] of the array.

        Runs lie within [0, total) and are not empty. The array is not to be written to.
        """
        values = self.values
        if values is not None or not len(starts):
            return np.empty(0, self.dtype) if values is None else values, starts
        rows, first = self._rows_of(starts, lengths)
        read = self._joined(rows)
        begins = np.cumsum(sizes := np.diff(self.offsets)[rows]) - sizes
        if len(read) != int(sizes.sum()):
            raise RuntimeError(f"{self.dataset.name} column {self.name!r} has changed its lengths")
        return read, begins[np.searchsorted(rows, first)] + starts - self.offsets[first]

    def future_keys(self, starts: Longs, lengths: Longs, sizes: Sequence[int]) -> Keys:
        """What `runs` will ask the hot cache for, called with `sizes` of the runs after one another."""
        rows, at = [], 0
        for size in sizes:
            rows.append(self._rows_of(starts[at : at + size], lengths[at : at + size])[0])
            at += size
        together = np.concatenate(rows) if rows else np.empty(0, np.int64)
        return self._rows.future_keys(together, [len(some) for some in rows])

    @property
    def plans(self) -> bool:
        """Whether `plan` is of use."""
        return self.values is None and self._rows.plans

    def plan(self, keys: Sequence[Keys], restart: bool) -> None:
        """Tell the hot cache what is read next, as Source.plan."""
        self._rows.plan(keys, restart)

    def _rows_of(self, starts: Longs, lengths: Longs) -> tuple[Longs, Longs]:
        """(the rows that runs touch, ascending, each once; the row in which each run begins)."""
        first = np.searchsorted(self.offsets, starts, side="right") - 1
        last = np.searchsorted(self.offsets, starts + lengths - 1, side="right") - 1
        counts = last - first + 1
        each = np.arange(int(counts.sum())) + np.repeat(first - np.cumsum(counts) + counts, counts)
        return np.unique(each), first

    def _joined(self, rows: Longs) -> npt.NDArray[Any]:
        pieces = [_items(chunk, self.name)[1] for chunk in self.dataset.take(rows, [self.name]).column(0).chunks]
        return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]

    # -- decoding ----------------------------------------------------------------------------------------------------

    def _filled(self) -> tuple[Longs, npt.NDArray[Any] | None]:
        if self._arrays is None:
            with self._lock:
                if self._arrays is None:
                    self._arrays = self._fill()
        return self._arrays

    def _fill(self) -> tuple[Longs, npt.NDArray[Any] | None]:
        head = _OFFSET_BYTES * (len(self.dataset) + 1)
        likely, _ = self._values_bytes()
        hot = likely <= self._bytes_max
        room = head + likely * hot
        identity = [FLAT_VERSION, self.dataset.fingerprint, self.name, self.dtype.str, list(self.item_shape), hot]
        item_bytes = self.dtype.itemsize * math.prod(self.item_shape)

        def make() -> memoryview:
            return _decoded(self.dataset.uncached(), self.name, item_bytes, room, hot).data

        made = cached_bytes(self.dataset, identity, room, make) or make()
        offsets = np.frombuffer(made, np.int64, len(self.dataset) + 1)
        if not hot:
            return offsets, None
        shape = int(offsets[-1]), *self.item_shape
        return offsets, np.frombuffer(made, self.dtype, math.prod(shape), head).reshape(shape)

    def decoded_bytes(self) -> int | None:
        """About how many bytes values and offsets take; None when they do not fit, or a list is null, which is no empty one."""
        likely, nulls = self._values_bytes()
        return None if nulls or likely > self._bytes_max else likely + _OFFSET_BYTES * (len(self.dataset) + 1)

    def _values_bytes(self) -> tuple[int, int]:
        """(at least as many bytes as the values have, null lists), from the tree's nodes alone; of a view, about as many.

        Reads the nodes of the row groups that the view has rows of, and stops at more than `bytes_max`: then it does not matter how
        many more there are.
        """
        leaves, selection = self.dataset.leaves, self.dataset.selection
        column = self.dataset.schema.get_field_index(self.name)
        starts = leaves.starts
        taken = np.diff(starts)  # rows of each row group
        if selection is not None:
            taken = np.bincount(np.searchsorted(starts, selection, side="right") - 1, minlength=len(starts) - 1)
        wanted = np.flatnonzero(taken)
        total, nulls = 0.0, 0
        for at in range(0, len(wanted), GROUPS_TOGETHER):
            some = wanted[at : at + GROUPS_TOGETHER].tolist()
            for number, group in zip(some, leaves.groups(some), strict=True):
                parts = group.columns[column]
                total += sum(part.page_bytes for part in parts) * int(taken[number]) / group.rows
                nulls += sum(part.nulls for part in parts)
            if total > self._bytes_max:
                break
        return math.ceil(total), nulls

    def __getstate__(self) -> dict[str, Any]:
        """Without the values and the lock: another process decodes, or maps, its own."""
        return {**self.__dict__, "_arrays": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def fitting(dataset: Dataset, names: Sequence[str], bytes_max: int) -> dict[str, FlatColumn]:
    """Those of the columns whose rows can be had out of memory: lists of numbers without nulls that fit `bytes_max` together, decoded.

    What they take is told by the tree's nodes; the smallest come first.
    """
    columns: list[tuple[int, FlatColumn]] = []
    for name in names:
        with contextlib.suppress(ValueError):
            column = FlatColumn(dataset, name, bytes_max)
            size = column.decoded_bytes()
            if size is not None:
                columns.append((size, column))
    found: dict[str, FlatColumn] = {}
    for size, column in sorted(columns, key=lambda one: one[0]):
        bytes_max -= size
        if bytes_max < 0:
            break
        with contextlib.suppress(SchemaError):  # nulls inside lists: read row by row, where they are values of Python
            _ = column.values
            found[column.name] = column
    return found


class FlatColumns:
    """The column of a dataset, decoded once for each `bytes_max` that it is asked for with. Any thread; pickles, without values.

    bytes_max: where none is asked for.
    """

    def __init__(self, dataset: Dataset, column: str, bytes_max: int | None = None) -> None:
        self._dataset, self._column, self._bytes_max = dataset, column, bytes_max
        if FlatColumn(dataset, column).item_shape:
            kind = dataset.schema.field(column).type
            raise ValueError(f"column {column!r} of dataset {dataset.name!r} has type {kind}, not lists of numbers")
        self._made: dict[int | None, FlatColumn] = {}

    def within(self, bytes_max: int | None) -> FlatColumn:
        """The same object for the same number."""
        most = self._bytes_max if bytes_max is None else bytes_max
        if most not in self._made:
            self._made.setdefault(most, FlatColumn(self._dataset, self._column, most))
        return self._made[most]

    @property
    def first(self) -> FlatColumn:
        """One that was asked for before, where there is one: for what needs the offsets only."""
        return next(iter(self._made.values()), None) or self.within(None)


class FlatSource:
    """What the sources of windows and packs have in common: they are made of a FlatColumn."""

    _flat: FlatColumn

    @property
    def name(self) -> str:
        """The dataset's."""
        return str(self._flat.dataset.name)

    @property
    def commit(self) -> str:
        """The dataset's."""
        return str(self._flat.dataset.commit)

    def fill(self) -> None:
        """Make ready what all batches need, once."""
        raise NotImplementedError

    def fill_ahead(self) -> None:
        """`fill` in a thread."""
        in_background(self.fill)

    def plan(self, keys: Sequence[Keys], restart: bool) -> None:
        """As Source."""
        self._flat.plan(keys, restart)


class _Growing:
    """Bytes that are written from the beginning to the end. Memory that was not written yet is not taken from the system."""

    def __init__(self, likely: int) -> None:
        self.buffer, self.used = np.empty(likely, np.uint8), 0

    def add(self, values: npt.NDArray[Any]) -> None:
        end = self.used + values.nbytes
        if end > len(self.buffer):
            self.buffer.resize(end + end // 4, refcheck=False)  # moves pages, not bytes, where the system can
        self.buffer[self.used : end] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.used = end


def _decoded(dataset: Dataset, name: str, item_bytes: int, room: int, hot: bool) -> npt.NDArray[np.uint8]:
    """Offsets and, when `hot`, values, as the module's docstring draws them."""
    rows = len(dataset)
    lengths, out = np.zeros(rows, np.int64), _Growing(room)
    out.used = _OFFSET_BYTES * (rows + 1)
    places: list[tuple[Any, int]] = []  # rows of the view that are not in its order, and where their values begin
    for which, batch in stored_order(dataset, [name]):
        ends, values = _items(batch.column(0), name)
        lengths[which] = np.diff(ends)
        if not isinstance(which, slice):
            places.append((which, out.used))
        if hot:
            out.add(values)
    if places and hot:
        out = _in_view_order(out, places, lengths, item_bytes)
    offsets = out.buffer[: _OFFSET_BYTES * (rows + 1)].view(np.int64)
    offsets[0] = 0
    np.cumsum(lengths, out=offsets[1:])
    return out.buffer[: out.used]


def _in_view_order(stored: _Growing, places: list[tuple[Any, int]], lengths: Longs, item_bytes: int) -> _Growing:
    begins = np.empty(len(lengths), np.int64)  # of each row of the view, in `stored`
    for which, first in places:
        sizes = lengths[which] * item_bytes
        begins[which] = np.cumsum(sizes) - sizes + first
    out = _Growing(stored.used)
    out.used = _OFFSET_BYTES * (len(lengths) + 1)
    for begin, size in zip(begins.tolist(), (lengths * item_bytes).tolist(), strict=True):
        out.add(stored.buffer[begin : begin + size])
    return out


def _item_of(dataset: Dataset, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """(dtype, shape) of what a list of the column has many of."""
    import pyarrow as pa

    if name not in dataset.schema.names:
        raise ValueError(f"dataset {dataset.name!r} has no column {name!r}; it has {', '.join(dataset.schema.names)}")
    data_type = dataset.schema.field(name).type
    kinds = pa.types
    if kinds.is_list(data_type) or kinds.is_large_list(data_type) or kinds.is_fixed_size_list(data_type):
        shape: tuple[int, ...] = ()
        item = data_type.value_type
        while kinds.is_fixed_size_list(item):
            item, shape = item.value_type, (*shape, item.list_size)
        if kinds.is_integer(item) or kinds.is_floating(item):
            return np.dtype(item.to_pandas_dtype()), shape
    raise ValueError(f"column {name!r} of dataset {dataset.name!r} has type {data_type}, not lists of numbers")


def _items(array: pa.Array, name: str) -> tuple[Longs, npt.NDArray[Any]]:
    """(offsets from 0, values) of an array of lists; a null list is empty. Views of Arrow's memory where that is possible."""
    import pyarrow as pa

    if array.null_count or pa.types.is_fixed_size_list(array.type):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        items, offsets = array.flatten(), np.zeros(len(array) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
        items = array.values[offsets[0] : offsets[-1]]
        offsets -= offsets[0]
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(items.type) and not items.null_count:
        shape, items = (*shape, items.type.list_size), items.flatten()
    if items.null_count:
        raise SchemaError(
            f"column {name!r} has nulls inside its lists, which have no number: fill them in a new version"
        )
    return offsets, items.to_numpy(zero_copy_only=False).reshape(-1, *shape)
