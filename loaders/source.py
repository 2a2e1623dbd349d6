"""The only door from loaders to leptonstore: what a loader may know of a dataset, and how it reads columns.

A column is one of two kinds:

    fixed      numbers, bools, fixed-size lists and tensors of them: a numpy array with one row per dataset row. Class
               labels are int64, as torch's losses want them; every other dtype is kept.
    variable   everything else (strings, bytes, lists, structs, times): a Python list of values, None for null;
               what lists and structs become says loaders.nested.

Fixed columns are decoded once into an arena, one contiguous array per column, as long as all of them together stay
below `arena_bytes_max`; the narrowest come first, so that labels are hot even where images are not. Lists of numbers are
decoded too, as one array of values each (loaders.flat), where they fit into what is left. The rest is read for each batch
by `Dataset.take`, which keeps decoded pages in a bounded cache. Row i of an arena is row i of the dataset *or view* that
was given.

A dataset that is read through the host's hot cache (`Dataset.cached`) has its arena there too: one process decodes it, all
that load the same columns of the same rows map it. Where it does not fit, each has its own. The source is a client of
the cache of its own, so that its plan is its own.

A null in a fixed column is NaN in a float column. Anywhere else there is no tensor for it: SchemaError.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from leptonstore.digest import digest_of
from leptonstore.errors import (
    BadInput,
    ChunkMissing,
    Damaged,
    FormatDamaged,
    FormatTooNew,
    LeptonError,
    MissingExtra,
    NotFound,
    RefMissing,
    SchemaError,
    SourceError,
)
from leptonstore.limits import ARENA_BYTES_MAX, CACHE_ARENA_SHARE_MAX, IMAGE_FILE_BYTES_MAX, IMAGE_PIXELS_MAX
from loaders.nested import row_values

if TYPE_CHECKING:
    import pyarrow as pa

    from leptonstore.cache.chunks import CachedChunks
    from leptonstore.dataset import Dataset as Dataset
    from leptonstore.dataset.derived import DerivedColumn
    from loaders.flat import FlatColumn
    from loaders.window_buffer import WindowBuffer

__all__ = [
    "ARENA_BYTES_MAX",
    "IMAGE_FILE_BYTES_MAX",
    "IMAGE_PIXELS_MAX",
    "BadInput",
    "ChunkMissing",
    "ColumnSource",
    "ColumnSpec",
    "Damaged",
    "FormatDamaged",
    "FormatTooNew",
    "LeptonError",
    "MissingExtra",
    "NotFound",
    "RefMissing",
    "SchemaError",
    "Source",
    "SourceError",
    "has_source",
    "image_decoder",
    "source_of",
    "versions",
    "write_file",
]

Values: TypeAlias = npt.NDArray[Any] | list[Any]
Keys: TypeAlias = npt.NDArray[np.uint8]  # of the hot cache, shape (n, 32)

ARENA_VERSION = "lepton.arena.1"  # of the layout of an arena in the hot cache
_ALIGN = 64
PLANNED_KEYS_MAX = 1 << 15  # that a daemon is told at a time: some seconds of reading, and 1 MiB on the wire


@dataclass(frozen=True)
class ColumnSpec:
    """What a loader makes of a column. `dtype` and `shape` (of one row) are None for a variable one."""

    name: str
    semantic: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...] | None

    @property
    def fixed(self) -> bool:
        """Whether the column is a numpy array, and not a list of Python values."""
        return self.dtype is not None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a fixed column."""
        assert self.dtype is not None and self.shape is not None
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def empty(self, rows: int) -> npt.NDArray[Any]:
        """Uninitialised memory for `rows` rows of a fixed column."""
        assert self.shape is not None
        return np.empty((rows, *self.shape), self.dtype)


class Source(Protocol):
    """What a loader reads from: `rows` rows of some columns, by number. Pickles. Safe from any thread once `fill` has returned.

    `ColumnSource` is that of a dataset or view. Anything else that is made of LeptonStore datasets (a mixture, windows of a
    stream of tokens) has a method `__lepton_source__(columns, arena_bytes_max)` that gives one, and may have
    `__lepton_order__()`, which gives the OrderStrategy that holds when none is asked for.

    A source may also have `column(name, lengths)` and `rows_where(condition)`, for orders that depend on values, and `reader_ahead()` with
    `cache_bytes`, for reading whole windows; see ColumnSource.
    """

    rows: int
    columns: tuple[ColumnSpec, ...]

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def commit(self) -> str:
        """The version, 64 hex digits."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the version and the rows: equal only where the same number means the same row."""
        ...

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """The columns that are read for each batch: threads help."""
        ...

    def fill_ahead(self) -> None:
        """Begin `fill` in a thread and return."""
        ...

    def fill(self) -> None:
        """Make ready what all batches need, once."""
        ...

    def gather(self, rows: npt.NDArray[np.int64]) -> dict[str, Values]:
        """The columns, in order, of the given rows, in the order of `rows`. Fresh memory."""
        ...

    @property
    def plans(self) -> bool:
        """Whether `plan` is of use."""
        ...

    def future_keys(self, rows: npt.NDArray[np.int64], sizes: Sequence[int]) -> Keys:
        """What batches of `sizes` rows, one after another out of `rows`, will ask the hot cache for."""
        ...

    def plan(self, keys: Sequence[Keys], restart: bool) -> None:
        """Tell the hot cache what is read next (restart: instead of what was told, else after it)."""
        ...


def write_file(path: Path, data: bytes, replace: bool = False) -> None:
    """A small file: whole and durable, or not there. Raises BadInput when it exists, unless it is to be replaced (then: whole)."""
    from leptonstore.tiers.durable import create_file, replace_file

    if replace:
        replace_file(path, data, path.parent)
    elif not create_file(path, data, path.parent):
        raise BadInput(f"{path} exists: take another name, or remove it")


def has_source(dataset: object) -> bool:
    """Whether `source_of` takes it. Its class says so itself, so that nothing need be imported."""
    kind = type(dataset)
    return bool(getattr(kind, "__lepton_dataset__", False)) or hasattr(kind, "__lepton_source__")


def source_of(dataset: Any, columns: Sequence[str] | None = None, arena_bytes_max: int | None = None) -> Source:
    """The source of a dataset, view, or anything that has one. Raises ValueError for a column that does not exist."""
    if hasattr(type(dataset), "__lepton_source__"):
        made: Source = dataset.__lepton_source__(columns, arena_bytes_max)
        return made
    return ColumnSource(dataset, columns, arena_bytes_max)


class ColumnSource:
    """The columns of one dataset or view, in the order asked (all, in schema order, when `columns` is None).

    Raises ValueError for a column that does not exist. Reading is safe from any thread once `fill` has returned.
    """

    def __init__(
        self, dataset: Dataset, columns: Sequence[str] | None = None, arena_bytes_max: int | None = None
    ) -> None:
        self.dataset = own_client(dataset)
        self.rows = len(dataset)
        self.columns = _specs_of(dataset, columns)
        self.arena: dict[str, npt.NDArray[Any]] = {}
        self._budget = ARENA_BYTES_MAX if arena_bytes_max is None else arena_bytes_max
        self._hot = _narrowest_within(self._budget, self.columns, self.rows)
        self._flat: dict[str, FlatColumn] = {}  # lists of numbers that lie decoded in memory; known after `fill`
        self._filled = False
        self._twin: Dataset | None = None  # reads ahead
        self.buffer: WindowBuffer | None = None  # what was read ahead for the pass that began last
        self._earlier: ColumnSource | None = None  # of another version, whose arena `fill` takes from
        self._lock = threading.Lock()

    def of_version(self, dataset: Dataset) -> ColumnSource:
        """The same columns of another version of the dataset. Of row groups that both have, `fill` copies what lies decoded here.

        Raises ValueError when a column is gone, SchemaError when it means something else there: another dtype, shape, semantic type, or
        other names for the classes that there were.
        """
        made = ColumnSource(dataset, [spec.name for spec in self.columns], self._budget)
        for old, new in zip(self.columns, made.columns, strict=True):
            classes, there = self.class_names.get(old.name, []), made.class_names.get(old.name, [])
            if old != new or there[: len(classes)] != classes:
                what = (
                    "names its classes otherwise"
                    if old == new
                    else f"is {new.dtype or new.semantic} of shape {new.shape}"
                )
                raise SchemaError(
                    f"column {old.name!r} {what} in version {made.commit[:12]} of {self.name!r} than in {self.commit[:12]}: "
                    "leave it out (columns=[…]), or begin a new run with that version"
                )
        made._earlier = self
        return made

    @property
    def fingerprint(self) -> str:
        """Identifies the version and the selected rows."""
        return str(self.dataset.fingerprint)

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Names of the classes of each class-label column."""
        from leptonstore.dataset.schema import class_names

        fields = ((spec.name, self.dataset.schema.field(spec.name)) for spec in self.columns)
        return {name: names for name, field in fields if (names := class_names(field)) is not None}

    @property
    def name(self) -> str:
        """The dataset's name."""
        return str(self.dataset.name)

    @property
    def commit(self) -> str:
        """The version, 64 hex digits."""
        return str(self.dataset.commit)

    @property
    def hot(self) -> tuple[ColumnSpec, ...]:
        """The columns of the arena."""
        return tuple(spec for spec in self.columns if spec.name in self._hot)

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """The columns that are read for each batch."""
        return tuple(spec for spec in self.columns if spec.name not in self._hot and spec.name not in self._flat)

    def fill_ahead(self) -> None:
        """Begin `fill` in a thread and return; `fill` waits for it. An error stays silent here: `fill` meets it again."""
        in_background(self.fill)

    def fill(self) -> None:
        """Decode the arena's columns, once. Memory: the arena and about one row group. Any thread may call it."""
        with self._lock:
            if self._filled:
                return
            self.arena = self._cached_arena() or self._own_arena()
            self._flat = self._fitting_lists()
            self._filled, self._earlier = True, None

    def _fitting_lists(self) -> dict[str, FlatColumn]:
        names = [spec.name for spec in self.columns if not spec.fixed]
        left = self._budget - sum(spec.row_bytes * self.rows for spec in self.hot)
        if not names or left <= 0:
            return {}
        from loaders.flat import fitting  # not before it is needed: it costs the first epoch of a process 0.1 s

        return fitting(self.dataset, names, left)

    def _own_arena(self) -> dict[str, npt.NDArray[Any]]:
        arena = {spec.name: spec.empty(self.rows) for spec in self.hot}
        self._decode_into(arena)
        return arena

    def _decode_into(self, arena: dict[str, npt.NDArray[Any]]) -> None:
        # Around the hot cache, which would keep every page beside the arena that is made of them.
        dataset, earlier = self.dataset.uncached(), self._earlier
        if not arena:
            return
        if earlier is None or earlier.dataset.selection is not None or set(earlier.arena) != set(arena):
            self._decode_rows(arena, stored_order(dataset, list(arena)))
            return
        for first, stop in _copied(earlier, dataset, arena):
            self._decode_rows(arena, stored_order(dataset.select(np.arange(first, stop)), list(arena)), first)

    def _decode_rows(
        self, arena: dict[str, npt.NDArray[Any]], batches: Iterator[tuple[Any, pa.RecordBatch]], first: int = 0
    ) -> None:
        for rows, batch in batches:
            for spec in self.hot:
                arena[spec.name][first:][rows] = _to_numpy(batch.column(spec.name), spec)

    # -- the hot cache -----------------------------------------------------------------------------------------------

    @property
    def _chunks(self) -> CachedChunks | None:
        return _chunks_of(self.dataset)

    def _cached_arena(self) -> dict[str, npt.NDArray[Any]] | None:
        """The arena in the hot cache, one column after the other, read-only; None when it has no room for it."""
        total, starts = 0, {}
        for spec in self.hot:
            starts[spec.name] = total
            total += -(-spec.row_bytes * self.rows // _ALIGN) * _ALIGN

        def arrays(buffer: memoryview) -> dict[str, npt.NDArray[Any]]:
            return {
                spec.name: np.ndarray((self.rows, *(spec.shape or ())), spec.dtype, buffer, starts[spec.name])
                for spec in self.hot
            }

        def make() -> memoryview:
            made = memoryview(bytearray(total))
            self._decode_into(arrays(made))
            return made

        layout = [(spec.name, spec.dtype.str if spec.dtype else "", spec.shape) for spec in self.hot]
        kept = cached_bytes(self.dataset, [ARENA_VERSION, self.fingerprint, self.rows, layout], total, make)
        return None if kept is None else arrays(kept)

    @property
    def plans(self) -> bool:
        """Whether a plan is of use: something is read for each batch, through a cache, or from a daemon that makes it ready."""
        return bool(self.cold) and (self._chunks is not None or self._advises)

    @property
    def _advises(self) -> bool:
        return self.dataset.cache is None and self.dataset.store.plans

    @property
    def plan_keys_max(self) -> int | None:
        """How many keys to tell at a time; None: as many as a cache of this host takes."""
        return PLANNED_KEYS_MAX if self._chunks is None else None

    def teller(self) -> Callable[[Mapping[str, float | str]], None] | None:
        """A function that takes how a loader fares, for whoever watches the store; None where nobody does."""
        store = self.dataset.store
        if not store.is_served:
            return None
        reader = f"{socket.gethostname()}/{os.getpid()}/{id(self):x}"
        return lambda figures: store.tell(reader, {**figures, "dataset": self.name})

    def future_keys(
        self,
        rows: npt.NDArray[np.int64],
        sizes: Sequence[int],
        derived: Mapping[str, Callable[[Keys], Keys]] | None = None,
    ) -> Keys:
        """What `read` of batches of these rows will ask the cache for. Nothing when that cannot be told: `read` will say why.

        derived: of columns whose values are not read where what was made of them is there (`derived`), from digests to keys.
        """
        from leptonstore.dataset.future import future_keys, future_reads

        with contextlib.suppress(LeptonError):
            if self._chunks is None:
                return future_reads(self.dataset, rows, sizes, [spec.name for spec in self.cold])
            return future_keys(self.dataset, rows, sizes, [spec.name for spec in self.cold], derived)
        return np.empty((0, 32), np.uint8)

    def plan(self, keys: Sequence[Keys], restart: bool) -> None:
        """Tell the cache, or the daemon, what is read next (restart: instead of what was told, else after it)."""
        chunks, told = self._chunks, np.concatenate(keys) if keys else np.empty((0, 32), np.uint8)
        if chunks is not None:
            chunks.cache.plan(told, restart)
        elif self._advises:
            self.dataset.store.plan(f"{os.getpid()}/{id(self):x}", [key.tobytes() for key in told], restart)

    def derived(self, column: str, recipe: str) -> DerivedColumn:
        """Where the hot cache keeps what is made of a column's values. recipe: what that is, by which versions of what.

        Raises ValueError when the dataset is not read through a hot cache, or the column holds no strings or bytes.
        """
        from leptonstore.dataset.derived import DerivedColumn

        try:
            return DerivedColumn(self.dataset, column, digest_of(recipe.encode()))
        except BadInput as error:
            raise ValueError(str(error)) from None

    def gather(self, rows: npt.NDArray[np.int64]) -> dict[str, Values]:
        """All columns of the given rows, in the order of `rows`. Fresh memory."""
        found: dict[str, Values] = {name: values.take(rows, 0) for name, values in self.arena.items()}
        found.update(self.read(rows))
        return {spec.name: found[spec.name] for spec in self.columns}

    def read(self, rows: npt.NDArray[np.int64], without: Container[str] = ()) -> dict[str, Values]:
        """The columns that are not in the arena, of the given rows, in the order of `rows`, but those in `without`. Fresh memory."""
        found: dict[str, Values] = {
            name: column.rows(rows) for name, column in self._flat.items() if name not in without
        }
        cold = [spec for spec in self.cold if spec.name not in without]
        if not cold:
            return found
        ahead = None if self.buffer is None or without else self.buffer.take(rows)
        return found | (self.read_cold(rows, cold) if ahead is None else ahead)

    def read_cold(self, rows: npt.NDArray[np.int64], cold: Sequence[ColumnSpec] | None = None) -> dict[str, Values]:
        """`read` of columns that lie decoded nowhere (all of them), from the dataset itself."""
        cold = self.cold if cold is None else cold
        if not len(rows):
            return {spec.name: spec.empty(0) if spec.fixed else [] for spec in cold}
        table = self.dataset.take(rows, columns=[spec.name for spec in cold])
        return {spec.name: _values_of(table.column(spec.name), spec) for spec in cold}

    # -- what an order asks for (loaders/orders) ---------------------------------------------------------------------

    def column(self, name: str, lengths: bool = False) -> npt.NDArray[Any]:
        """One number of every row, of any column of the dataset: shape (rows,), one per host where the arena is; not to be written.

        lengths: of a variable column (strings and bytes: bytes; lists: elements) the lengths, int64, 0 for null.
        Raises ValueError for a column that does not exist or has no single number in each row; SchemaError for nulls.
        """
        (spec,) = _specs_of(self.dataset, [name])
        if lengths and not spec.fixed:
            return self._lengths(name)
        if not spec.fixed or spec.shape != ():
            raise ValueError(f"column {name!r} of dataset {self.name!r} has no single number in each row")
        if name in self.arena:
            return self.arena[name]
        twin = ColumnSource(self.dataset, [name], spec.row_bytes * self.rows)
        twin.fill()
        return twin.arena[name]

    def _lengths(self, name: str) -> npt.NDArray[np.int64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        out = np.zeros(self.rows, np.int64)
        for rows, batch in stored_order(self.dataset.uncached(), [name]):
            kind = batch.column(0).type
            try:
                measure = pc.list_value_length if pa.types.is_nested(kind) else pc.binary_length
                found = measure(batch.column(0))
            except pa.ArrowNotImplementedError:
                raise ValueError(
                    f"column {name!r} of dataset {self.name!r} has {kind} values, without a length"
                ) from None
            out[rows] = pc.fill_null(found, 0).to_numpy(zero_copy_only=False)
        return out

    def rows_where(self, condition: str) -> npt.NDArray[np.int64]:
        """The rows that a condition (text, as in `lepton delete --where`) is true for. Raises BadInput."""
        from leptonstore.dataset.filtering import filtered
        from leptonstore.dataset.predicate import Predicate

        found = [rows for rows, _ in filtered(self.dataset, Predicate(condition, self.dataset.schema), None)]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def reader_ahead(self) -> Callable[[npt.NDArray[np.int64]], int] | None:
        """A function that brings what batches of some rows will need into the host's cache, and says how many bytes that is.

        It raises when it cannot, OSError when the cache is gone.

        It is a client of its own there: what it asks for does not count as used. None where nothing is read for each batch, or not
        through a cache that can be used, or from where a request costs no more than its bytes (a disk).
        """
        if not self.plans or self.dataset.cache is None or not self.distant:
            return None
        from leptonstore.dataset.future import future_digests

        if self._twin is None:
            self._twin = self.dataset.cached(self.dataset.cache.path)
        twin, names = self._twin, [spec.name for spec in self.cold]

        def read(rows: npt.NDArray[np.int64]) -> int:
            chunks: Any = twin.chunks
            if not chunks.cache.usable:
                raise OSError("the cache is gone: what is read would be for nobody")
            wanted = list(dict.fromkeys(digest.tobytes() for digest in future_digests(twin, rows, names)))
            return sum(len(value) for value in chunks.get_many(wanted))

        return read

    def buffers(self, threads: bool) -> bool:
        """Whether what a pass reads ahead may go to `buffer`: something is read for each batch, not through a hot cache, and it comes from
        far away, or the loader has threads anyway."""
        return bool(self.cold) and self.dataset.cache is None and (threads or self.distant)

    @property
    def distant(self) -> bool:
        """Whether some of it may have to come from where many small reads cost far more than a long one: an object store, a daemon."""
        return bool(self.dataset.store.far)

    @property
    def cache_bytes(self) -> int:
        """The budget of the cache that is read through; 0 without one."""
        chunks = self._chunks
        try:
            return 0 if chunks is None else int(chunks.cache.stats().get("budget_bytes", 0))
        except OSError:  # a stopped process holds its lock
            return 0

    def __getstate__(self) -> dict[str, Any]:
        """Without the arena and the lock: another process decodes its own."""
        gone = {
            "arena": {},
            "_flat": {},
            "_filled": False,
            "_twin": None,
            "buffer": None,
            "_earlier": None,
            "_lock": None,
        }
        return {**self.__dict__, **gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


# -- versions that come after another (loaders.follow) ---------------------------------------------------------------


def versions() -> ModuleType:
    """What there is to know of a dataset's other versions: the functions of leptonstore.dataset.following."""
    from leptonstore.dataset import following

    return following


def _copied(earlier: ColumnSource, dataset: Dataset, arena: dict[str, npt.NDArray[Any]]) -> list[tuple[int, int]]:
    """Copies from an arena to that of a later version the rows of row groups that both have; the [first, stop) of all others."""
    missing, at = [], 0
    for old, new, rows in versions().kept_rows(earlier.dataset, dataset):
        missing.append((at, new))
        at = new + rows
        for name, values in arena.items():
            values[new:at] = earlier.arena[name][old : old + rows]
    return [(first, stop) for first, stop in (*missing, (at, len(dataset))) if first < stop]


def _specs_of(dataset: Dataset, columns: Sequence[str] | None) -> tuple[ColumnSpec, ...]:
    schema = dataset.schema
    names = list(schema.names if columns is None else columns)
    for name in names:
        if name not in schema.names:
            raise ValueError(f"dataset {dataset.name!r} has no column {name!r}; it has {', '.join(schema.names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a column is asked for twice: {', '.join(names)}")
    return tuple(_spec_of(schema.field(name)) for name in names)


def _spec_of(field: pa.Field) -> ColumnSpec:
    import pyarrow as pa

    from leptonstore.dataset.schema import semantic_of

    semantic, data_type, shape = semantic_of(field), field.type, []
    if isinstance(data_type, pa.FixedShapeTensorType):
        shape, data_type = list(data_type.shape), data_type.value_type
    while pa.types.is_fixed_size_list(data_type):
        shape, data_type = [*shape, data_type.list_size], data_type.value_type
    numeric = pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or pa.types.is_boolean(data_type)
    if not numeric:
        return ColumnSpec(field.name, semantic, None, None)
    stored = pa.array([], data_type).to_numpy(zero_copy_only=False).dtype
    return ColumnSpec(field.name, semantic, np.dtype(np.int64) if semantic == "class_label" else stored, tuple(shape))


def require_known(columns: Sequence[str] | None, there: Sequence[str], what: str) -> None:
    """Raise ValueError for a column that is asked for and is not there."""
    for name in columns or ():
        if name not in there:
            raise ValueError(f"{what} have no column {name!r}; they have {', '.join(there)}")


def in_background(fill: Callable[[], None]) -> None:
    """Begin `fill` in a thread. Its errors stay silent: whoever calls it again meets them."""

    def begin() -> None:
        with contextlib.suppress(Exception):
            fill()

    threading.Thread(target=begin, name="lepton-arena", daemon=True).start()


def cached_bytes(
    dataset: Dataset, identity: list[Any], total: int, make: Callable[[], memoryview]
) -> memoryview | None:
    """What `make` gives, about `total` bytes, once for the host: kept in the hot cache that `dataset` is read through, read-only.

    identity: JSON-able; says what it is. None when there is no cache that can be used, or no room in it. The cache's client is the
    dataset's, whose plan this replaces. Raises what `make` raises.
    """
    chunks = _chunks_of(dataset)
    if chunks is None or not total or not _has_room(chunks, total):
        return None
    key = chunks.key(digest_of(json.dumps(identity).encode()))
    chunks.cache.plan([key], restart=True)  # what is in nobody's plan is not taken in where others have one
    return chunks.cache.get_or_put(key, make).data


def _chunks_of(dataset: Dataset) -> CachedChunks | None:
    """What is read through, when that is a cache that can be used."""
    if dataset.cache is None:
        return None
    chunks: Any = dataset.chunks
    return chunks if chunks.cache.usable else None


def own_client(dataset: Dataset) -> Dataset:
    """The same rows; where they are read through a hot cache, by a client of its own, so that its plan is its own."""
    return dataset if dataset.cache is None else dataset.cached(dataset.cache.path, dataset.cache.budget_bytes)


def fingerprint_of(identity: list[Any]) -> str:
    """A fingerprint of something that is made of versions: `identity` is JSON-able and has all that decides what its rows are."""
    return digest_of(json.dumps(identity).encode()).hex()


def _has_room(chunks: CachedChunks, total: int) -> bool:
    try:
        return total <= CACHE_ARENA_SHARE_MAX * chunks.cache.stats().get("budget_bytes", 0)
    except OSError:  # a stopped process holds its lock
        return False


def _narrowest_within(budget: int, columns: tuple[ColumnSpec, ...], rows: int) -> frozenset[str]:
    hot = []
    for spec in sorted((spec for spec in columns if spec.fixed), key=lambda spec: spec.row_bytes):
        budget -= spec.row_bytes * rows
        if budget < 0:
            break
        hot.append(spec.name)
    return frozenset(hot)


def stored_order(dataset: Dataset, columns: list[str]) -> Iterator[tuple[Any, pa.RecordBatch]]:
    """(rows of the view, their values), so that each row group is decoded once however the view is ordered. Keeps no pages."""
    selection = dataset.selection
    if selection is None or bool((selection[1:] > selection[:-1]).all()):
        for first, batch in dataset.iter_batches(columns=columns, keep=False):
            yield slice(first, first + len(batch)), batch
        return
    order = np.argsort(selection, kind="stable")
    for first, batch in dataset.select(order).iter_batches(columns=columns, keep=False):
        yield order[first : first + len(batch)], batch


def _values_of(column: pa.ChunkedArray, spec: ColumnSpec) -> Values:
    if not spec.fixed:
        return [value for chunk in column.chunks for value in row_values(chunk)]
    out, at = spec.empty(len(column)), 0
    for chunk in column.chunks:
        out[at : at + len(chunk)] = _to_numpy(chunk, spec)
        at += len(chunk)
    return out


def _to_numpy(array: pa.Array, spec: ColumnSpec) -> npt.NDArray[Any]:
    """The values of a fixed column, shape (rows, *spec.shape); a view of Arrow's memory where that is possible."""
    import pyarrow as pa

    rows = len(array)
    if isinstance(array.type, pa.FixedShapeTensorType):
        array = array.storage
    while pa.types.is_fixed_size_list(array.type):
        _require_no_nulls(array, spec)
        array = array.flatten()
    if not pa.types.is_floating(array.type):
        _require_no_nulls(array, spec)
    assert spec.shape is not None
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values.reshape(rows, *spec.shape)


def _require_no_nulls(array: pa.Array, spec: ColumnSpec) -> None:
    if array.null_count:
        raise null_error(spec)


def null_error(spec: ColumnSpec) -> SchemaError:
    """Of a column with nulls, for which a tensor of its dtype has no value."""
    return SchemaError(
        f"column {spec.name!r} has nulls, for which a tensor of {spec.dtype} has no value: "
        "fill them in a new version, or leave the column out with columns=[…]"
    )


def image_decoder() -> ModuleType:
    """The store's own decoder of images (Pillow, when it is used): the same pixels in analysis, predictions and training."""
    from leptonstore.process import images

    return images
