"""rows.join: columns of another dataset, looked up by key.

    dataset = "labels@main"      on = ["id"]      columns = ["label"]

The key names at most one row of the other dataset; that is made sure of before anything runs. Which version it is stands in the recipe:
its commit. Each process reads the other's keys once, and they stay in memory; so do values, of columns that are small. Others are read
as rows ask for them, so that the other dataset may be large.

A key is looked up by a 64-bit hash, in a sorted array, and then compared; null is no key and finds nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.cut import row_hashes
from leptonstore.dataset.values import one_array
from leptonstore.errors import BadInput, DuplicateKey, SchemaError, listed
from leptonstore.format.page import fixed_width
from leptonstore.limits import JOIN_BYTES_MAX, JOIN_ROWS_MAX, JOIN_VALUES_BYTES_MAX
from leptonstore.process import columns
from leptonstore.process.columns import field_of
from leptonstore.process.operation import Made, Operation, RowOperation
from leptonstore.process.operations.parameters import one_of, texts

Ints = NDArray[np.int64]
_KINDS = ("left", "inner")


@dataclass(frozen=True)
class Join(RowOperation):
    """Adds columns of another dataset.

    dataset: NAME or NAME@REF, in the same store. on: columns of both that name a row of the other. columns: of the other that are added, by
    default all but `on`. kind: "left": rows that find nothing stay, with nulls; "inner": they are left out. prefix: before the new names.
    """

    name: ClassVar[str] = "rows.join"
    memoised: ClassVar[bool] = False
    dataset: str
    on: Sequence[str]
    columns: Sequence[str] = ()
    kind: str = "left"
    prefix: str = ""
    commit: str = ""
    other: _Other | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "on", texts(self.name, "on", self.on))
        object.__setattr__(self, "columns", texts(self.name, "columns", self.columns))
        one_of(self.name, "kind", self.kind, _KINDS)
        if not self.on:
            raise BadInput(f"{self.name}: name at least one column in `on`")

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """With the other version and its commit. Raises RefMissing, SchemaError, DuplicateKey (keys that name several rows), BadInput."""
        name = self.dataset.partition("@")[0]
        there = Dataset.open(source.store, f"{name}@{self.commit}" if self.commit else self.dataset)
        for column in (*self.on, *self.columns):
            there.fields([column])
        wanted = self.columns or tuple(one for one in there.column_names if one not in self.on)
        made = replace(self, commit=there.commit, columns=wanted)
        other = _Other(there, tuple(self.on), tuple(wanted))
        object.__setattr__(made, "other", other)
        made.output(schema)
        _ = other.keys
        return made

    def recipe(self) -> dict[str, Any]:
        """By the commit, whatever ref led to it."""
        found = super().recipe()
        return found | ({"dataset": self.dataset.partition("@")[0]} if self.commit else {})

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The key."""
        for name in self.on:
            here = field_of(self.name, schema, name).type
            if not _can_be_key(here):
                raise SchemaError(
                    f"{self.name}: column {name!r} ({here}) is no key; integers, strings, bytes, dates and times are"
                )
            there = self.other.schema.field(name).type if self.other else here
            if here != there:
                raise SchemaError(
                    f"{self.name}: column {name!r} is {here} here and {there} in {self.dataset}; cast one of them"
                )
        return tuple(self.on)

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With the columns of the other."""
        self.reads(schema)
        for added in self._added():
            if added.name in schema.names:
                raise SchemaError(
                    f"{self.name}: there is a column {added.name!r} already; give a `prefix`, or name `columns`"
                )
            schema = schema.append(added)
        return schema

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns of the other."""
        return tuple(one.name for one in self._added())

    def apply(self, batch: pa.RecordBatch) -> Made:
        """What each row's key finds."""
        fields = self._added()
        assert self.other is not None
        rows = self.other.keys.rows_of(batch.columns)
        values = self.other.values(rows)
        if self.kind == "left":
            return Made({one.name: value for one, value in zip(fields, values, strict=True)})
        return Made({one.name: value for one, value in zip(fields, values, strict=True)}, keep=rows >= 0)

    def _added(self) -> list[pa.Field]:
        if self.other is None:
            raise BadInput(f"{self.name}: {self.dataset} has not been opened; call `bound` first")
        found = [self.other.schema.field(name) for name in self.columns]
        optional = self.kind == "left"
        return [one.with_name(self.prefix + one.name).with_nullable(one.nullable or optional) for one in found]


class _Other:
    """The other version. Pickles as a reference; what is read of it stays in the process. Any thread."""

    def __init__(self, there: Dataset, on: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        self.there, self.on, self.wanted = there, on, wanted
        self._read: _Read | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"there": self.there, "on": self.on, "wanted": self.wanted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def schema(self) -> pa.Schema:
        """Of the other version."""
        return self.there.schema

    @property
    def keys(self) -> _Keys:
        """Its keys. Raises DuplicateKey, BadInput when they are too many."""
        return self._loaded.keys

    @property
    def _loaded(self) -> _Read:
        key = (self.there.store.url, self.there.fingerprint, self.on, self.wanted)
        with self._lock:
            if self._read is None:
                with _LOCK:
                    found = _LOADED.get(key)
                if found is None:
                    found = _Read(_read_keys(self.there, self.on), _small_columns(self.there, self.wanted))
                    with _LOCK:
                        while len(_LOADED) >= _LOADED_MAX:
                            _LOADED.pop(next(iter(_LOADED)))
                        _LOADED[key] = found
                self._read = found
            return self._read

    def values(self, rows: Ints) -> list[pa.Array]:
        """The columns wanted of some rows, null where a row is -1."""
        missing, small = rows < 0, self._loaded.small
        large = [name for name in self.wanted if name not in small]
        found = {name: column.take(pa.array(rows, mask=missing)) for name, column in small.items()}
        if large:
            there, places = np.unique(rows[~missing], return_inverse=True)
            at = np.zeros(len(rows), np.int64)
            at[~missing] = places
            table = self.there.take(there, large)
            found |= {name: one_array(table[name]).take(pa.array(at, mask=missing)) for name in large}
        return [found[name] for name in self.wanted]


@dataclass(frozen=True)
class _Read:
    """What a process keeps of another version. small: columns that stand in memory."""

    keys: _Keys
    small: dict[str, pa.Array]


_LOADED_MAX = 4  # other versions of which a process keeps something
_LOADED: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], _Read] = {}
_LOCK = threading.Lock()


class _Keys:
    """Keys of the other version, by hash."""

    def __init__(self, hashes: NDArray[np.uint64], rows: Ints, keys: list[pa.Array]) -> None:
        """hashes: ascending; rows: of each, in the version; keys: the columns of the key, in that order."""
        self._hashes, self._rows, self._keys = hashes, rows, keys

    def rows_of(self, keys: Sequence[pa.Array]) -> Ints:
        """The row of the version that each key names, -1 where there is none."""
        found = np.full(len(keys[0]), -1, np.int64)
        if not len(self._hashes):
            return found
        wanted = row_hashes(list(keys))
        order = np.argsort(wanted)  # looked up in order, the search stays in the processor's cache
        at = np.empty(len(wanted), np.int64)
        at[order] = np.searchsorted(self._hashes, wanted[order])
        open_ = np.flatnonzero(~_any_null(keys))
        while len(open_):  # once, but for two keys of one hash
            inside = at[open_] < len(self._hashes)
            open_ = open_[inside]
            open_ = open_[self._hashes[at[open_]] == wanted[open_]]
            if not len(open_):
                break
            equal = np.ones(len(open_), np.bool_)
            for mine, theirs in zip(keys, self._keys, strict=True):
                same = pc.equal(mine.take(pa.array(open_)), theirs.take(pa.array(at[open_])))
                equal &= same.to_numpy(zero_copy_only=False)
            found[open_[equal]] = self._rows[at[open_[equal]]]
            open_ = open_[~equal]
            at[open_] += 1
        return found


def _read_keys(there: Dataset, on: tuple[str, ...]) -> _Keys:
    """Read the key of all rows. Raises BadInput, DuplicateKey."""
    if len(there) > JOIN_ROWS_MAX:
        raise BadInput(
            f"rows.join: {there.label} has {len(there):,} rows; {JOIN_ROWS_MAX:,} are the most that can be looked up in"
        )
    parts: list[pa.RecordBatch] = []
    size = 0
    for _, batch in there.iter_batches(on, keep=False):
        parts.append(batch)
        size += batch.nbytes
        if size > JOIN_BYTES_MAX:
            raise BadInput(
                f"rows.join: the keys {', '.join(on)} of {there.label} have over {JOIN_BYTES_MAX:,} bytes; join by shorter ones"
            )
    table = pa.Table.from_batches(parts, pa.schema(there.fields(on)))
    keys = [one_array(table[name]) for name in on]
    rows = np.flatnonzero(~_any_null(keys))
    keys = [key.take(pa.array(rows)) for key in keys]
    hashes = row_hashes(keys) if len(rows) else np.zeros(0, np.uint64)
    order = np.argsort(hashes, kind="stable")
    hashes, rows, keys = hashes[order], rows[order], [key.take(pa.array(order)) for key in keys]
    _require_unique(there, on, hashes, rows, keys)
    return _Keys(hashes, rows, keys)


def _require_unique(
    there: Dataset, on: tuple[str, ...], hashes: NDArray[np.uint64], rows: Ints, keys: list[pa.Array]
) -> None:
    starts = (
        np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1]))) if len(hashes) else np.zeros(0, np.int64)
    )
    lengths = np.diff(np.append(starts, len(hashes)))
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        seen: dict[tuple[Any, ...], int] = {}
        for at in range(start, start + length):
            key = tuple(column[at].as_py() for column in keys)
            if key in seen:
                shown = ", ".join(f"{name} {value!r}" for name, value in zip(on, key, strict=True))
                raise DuplicateKey(
                    f"rows.join: rows {seen[key]} and {int(rows[at])} of {there.label} both have {shown}: which one is meant? Join by more "
                    f"columns ({listed(there.column_names)}), or clean its duplicates first"
                )
            seen[key] = int(rows[at])


def _can_be_key(data_type: pa.DataType) -> bool:
    kinds = pa.types
    if isinstance(data_type, pa.BaseExtensionType) or kinds.is_floating(data_type):
        return False
    if columns.is_number(data_type) or kinds.is_temporal(data_type) or kinds.is_fixed_size_binary(data_type):
        return True
    return bool(kinds.is_string(data_type) or kinds.is_large_string(data_type) or columns.is_binary(data_type))


def _any_null(keys: Sequence[pa.Array]) -> NDArray[np.bool_]:
    return np.logical_or.reduce([columns.null_mask(key) for key in keys])


def _small_columns(there: Dataset, wanted: tuple[str, ...]) -> dict[str, pa.Array]:
    """Columns whose values are few bytes: of fixed width, or all when the whole version is small."""
    small, left = [], JOIN_VALUES_BYTES_MAX
    whole = there.commit_object.plain_bytes <= JOIN_VALUES_BYTES_MAX
    for field_ in there.fields(wanted):
        width = 1 if pa.types.is_boolean(field_.type) else fixed_width(field_.type)
        size = 0 if whole else left + 1 if width is None else width * len(there)
        if size <= left:
            small.append(field_.name)
            left -= size
    table = there.to_arrow(small) if small else None
    return {name: one_array(table[name]) for name in small} if table is not None else {}
