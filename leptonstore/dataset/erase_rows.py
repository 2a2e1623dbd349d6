"""Which rows of which versions an erasure is about.

A sample is what has the same identity (the key, or the values of the identity columns) in any version. So it is looked for twice: rows that
are meant directly (a condition, keys, row numbers), in every version in which that can be told; then rows of the same identity in all
versions, however they were edited. Row groups that versions share are read once.

Without a key, several rows may have one identity. Where the condition finds some of them and not the others, nobody but the caller knows
whether these are the same sample: BadInput, unless `same_identity` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.cut import row_hashes
from leptonstore.dataset.edit import matching_in
from leptonstore.dataset.equality import differing
from leptonstore.dataset.groups import read_column
from leptonstore.dataset.row_numbers import rows_within
from leptonstore.dataset.rows_in import RowsIn, batches_in
from leptonstore.dataset.schema import inline_bytes
from leptonstore.dataset.tree import Leaves
from leptonstore.dataset.values import Column, resolve, take
from leptonstore.dataset.where import Filter
from leptonstore.digest import Digest, digest_of
from leptonstore.errors import BadInput, SchemaError
from leptonstore.format.commit import Commit
from leptonstore.format.keys import encode_keys
from leptonstore.format.node import RowGroup
from leptonstore.format.page import REFERENCE, as_binary, is_variable
from leptonstore.store import Store

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
_NONE: Rows = np.empty(0, np.int64)


@dataclass(frozen=True)
class Asked:
    """One of: a condition; keys (a table with the key columns); row numbers of version `commit`."""

    where: Any = None
    keys: RowsIn = None
    rows: Sequence[int] | None = None
    commit: str = ""


@dataclass
class Samples:
    """Identities of samples: plain values of the identity columns, by the names of these."""

    tables: dict[tuple[str, ...], list[pa.Table]] = field(default_factory=dict)

    def add(self, names: tuple[str, ...], table: pa.Table) -> None:
        """Rows with the columns `names`."""
        if table.num_rows:
            self.tables.setdefault(names, []).append(table)


class _Wanted:
    """The identities to look for, as the versions of one schema keep them."""

    def __init__(self, tables: list[pa.Table], fields: list[pa.Field]) -> None:
        self._fields = fields
        pieces = []
        for table in tables:
            try:
                arrays = [_whole(table.column(one.name)).cast(_plain(one.type)) for one in fields]
            except pa.ArrowException:
                continue  # values that the columns of this version cannot hold stand in none of its rows
            pieces.append([_stored(array, one) for array, one in zip(arrays, fields, strict=True)])
        self._pieces = pieces
        hashes = [row_hashes([column.values for column in columns]) for columns in pieces]
        self._hashes = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
        self._places: dict[int, list[tuple[int, int]]] = {}
        for number, some in enumerate(hashes):
            for at, value in enumerate(some.tolist()):
                self._places.setdefault(value, []).append((number, at))

    def rows(self, columns: list[Column]) -> Rows:
        """Positions of the rows of `columns` that are wanted."""
        hashes = row_hashes([column.values for column in columns])
        candidates = np.flatnonzero(np.isin(hashes, self._hashes))
        return np.array([at for at in candidates.tolist() if self._equal(columns, at, int(hashes[at]))], np.int64)

    def _equal(self, columns: list[Column], at: int, value: int) -> bool:
        mine = [take(column, np.array([at])) for column in columns]
        for number, place in self._places[value]:
            theirs = [take(column, np.array([place])) for column in self._pieces[number]]
            pairs = zip(mine, theirs, self._fields, strict=True)
            if not any(differing(one, other, kind.type)[0] for one, other, kind in pairs):
                return True
        return False


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)


def _plain(data_type: pa.DataType) -> pa.DataType:
    return data_type.storage_type if isinstance(data_type, pa.BaseExtensionType) else data_type


def _stored(array: pa.Array, kind: pa.Field) -> Column:
    """As a page keeps it; nothing is put into the store."""
    if isinstance(kind.type, pa.BaseExtensionType):
        return Column(pa.ExtensionArray.from_storage(kind.type, array))
    if not is_variable(kind.type):
        return Column(array)
    large = np.asarray(pc.fill_null(pc.greater(pc.binary_length(array), inline_bytes(kind)), False), np.bool_)
    if not large.any():
        return Column(array)
    binary = as_binary(kind.type)
    values = [
        REFERENCE.pack(digest_of(value), len(value)) if far else value
        for value, far in zip(array.cast(binary).to_pylist(), large.tolist(), strict=True)
    ]
    return Column(pa.array(values, binary), large)


class Rowsets:
    """Finds rows in the versions of one dataset. One thread. Memory: rows that were found, by row group."""

    def __init__(self, store: Store, commits: dict[str, Commit], progress: Callable[[int], None]) -> None:
        """commits: those to look in, by digest (hex)."""
        self._store, self._commits, self._progress = store, commits, progress
        self._leaves: dict[str, Leaves] = {}
        self._groups: dict[tuple[Any, ...], Rows] = {}  # (what for, schema, row group) -> rows in it
        self._looked = 0

    def find(self, asked: Asked, same_identity: bool | None) -> dict[str, Rows]:
        """Version -> its rows, ascending; only versions that have any. Raises BadInput, SchemaError."""
        samples, direct = Samples(), {}
        if asked.rows is not None:
            chosen = rows_within(asked.rows, self._commits[asked.commit].rows, "the version")
            self._add(samples, asked.commit, chosen)
            direct[asked.commit] = chosen
        elif asked.keys is not None:
            self._add_keys(samples, asked)
        else:
            for commit in self._commits:
                rows = self._matching(commit, asked)
                if rows is not None:
                    direct[commit] = rows
                    self._add(samples, commit, rows)
        found = {}
        for commit, version in self._commits.items():
            same = self._same(commit, samples, direct.get(commit))
            rows = direct.get(commit, _NONE)
            if not version.keyed and commit in direct and len(same) > len(rows):
                if same_identity is None:
                    raise BadInput(self._ambiguous(commit, len(same) - len(rows)))
                same = same if same_identity else rows
            if len(same):
                found[commit] = same
        return found

    def _ambiguous(self, commit: str, count: int) -> str:
        names = ", ".join(self._commits[commit].identity)
        return (
            f"in version {commit[:12]}, {count} more rows have the same {names} as rows that are meant: edited ones, or other samples that "
            "look alike; say --same-identity to erase these too, or --only-matching to keep them"
        )

    # -- direct --------------------------------------------------------------------------------------------------

    def _matching(self, commit: str, asked: Asked) -> Rows | None:
        """None where the condition does not fit the columns of a version; the one that was named has to fit."""
        version = self._commits[commit]
        try:
            condition = Filter(version.schema, asked.where)
        except (SchemaError, BadInput):
            if commit == asked.commit:
                raise
            return None
        return self._by_group(
            commit,
            ("where",),
            lambda group, first: matching_in(self._store, version.schema, condition, group, first, commit[:12]),
        )

    def _add_keys(self, samples: Samples, asked: Asked) -> None:
        version = self._commits[asked.commit]
        if not version.keyed:
            raise BadInput("the dataset has no key: say which rows with --where or --rows")
        schema = pa.schema([version.schema.field(name) for name in version.identity])
        batches = list(batches_in(asked.keys, schema))
        for batch in batches:
            encode_keys(batch.columns, list(version.identity))  # says what can be no key
        samples.add(version.identity, pa.Table.from_batches(batches, schema) if batches else schema.empty_table())

    # -- by identity ---------------------------------------------------------------------------------------------

    def _add(self, samples: Samples, commit: str, rows: Rows) -> None:
        """The identities of some rows of a version."""
        version = self._commits[commit]
        fields = [version.schema.field(name) for name in version.identity]
        for first, group, within in self._split(commit, rows):
            columns = [self._column(version, group, name, first, commit) for name in version.identity]
            arrays = [
                resolve(self._store, take(column, within), one.type)
                for column, one in zip(columns, fields, strict=True)
            ]
            arrays = [array.storage if isinstance(array, pa.ExtensionArray) else array for array in arrays]
            samples.add(version.identity, pa.table(dict(zip(version.identity, arrays, strict=True))))

    def _same(self, commit: str, samples: Samples, direct: Rows | None) -> Rows:
        version = self._commits[commit]
        tables = [
            table for names, some in samples.tables.items() if set(names) <= set(version.schema.names) for table in some
        ]
        by_names: dict[tuple[str, ...], list[pa.Table]] = {}
        for table in tables:
            by_names.setdefault(tuple(table.column_names), []).append(table)
        if not by_names and direct is None and samples.tables and version.rows:
            raise BadInput(
                f"version {commit[:12]} has neither the columns of the condition nor those that identify rows elsewhere: which of its rows "
                "are meant cannot be told; forget that version (`lepton forget`), or erase rows in it by a condition of its own"
            )
        rows = [_NONE if direct is None else direct]
        for names, some in by_names.items():
            fields = [version.schema.field(name) for name in names]
            wanted = _Wanted(some, fields)

            def look(group: RowGroup, first: int, names: Any = names, wanted: Any = wanted) -> Rows:
                return wanted.rows([self._column(version, group, name, first, commit) for name in names])

            rows.append(self._by_group(commit, ("same", names), look))
        return np.unique(np.concatenate(rows))

    # -- row groups ----------------------------------------------------------------------------------------------

    def _leaves_of(self, commit: str) -> Leaves:
        found = self._leaves.get(commit)
        if found is None:
            version = self._commits[commit]
            found = self._leaves[commit] = Leaves(self._store, version.root, version.rows)
        return found

    def _by_group(self, commit: str, what: tuple[Any, ...], look: Callable[[RowGroup, int], Rows]) -> Rows:
        """What `look` (of a row group and its first row) finds in all of a version."""
        schema = self._commits[commit].schema
        kinds = tuple((one.name, str(one.type), inline_bytes(one)) for one in schema)
        leaves, found = self._leaves_of(commit), []
        for index, digest in enumerate(leaves.digests):
            key = (*what, kinds, digest)
            if key not in self._groups:
                self._groups[key] = look(leaves.group(index), int(leaves.starts[index]))
                self._looked += 1
                self._progress(self._looked)
            if len(self._groups[key]):
                found.append(self._groups[key] + leaves.starts[index])
        return np.concatenate(found) if found else _NONE

    def _column(self, version: Commit, group: RowGroup, name: str, first: int, commit: str) -> Column:
        at = version.schema.get_field_index(name)
        return read_column(self._store, group.columns[at], version.schema.field(at), first, commit[:12])

    def _split(self, commit: str, rows: Rows) -> Iterator[tuple[int, RowGroup, Rows]]:
        """(first row, row group, rows in it) of the row groups that have some of `rows`."""
        for first, _, group, within in split(self._leaves_of(commit), rows):
            yield first, group, within


def split(leaves: Leaves, rows: Rows) -> Iterator[tuple[int, Digest, RowGroup, Rows]]:
    """(first row, digest, row group, rows in it) of the row groups that have some of `rows`, ascending."""
    ends = np.searchsorted(rows, leaves.starts)
    for index in range(len(leaves.digests)):
        some = rows[ends[index] : ends[index + 1]]
        if len(some):
            first = int(leaves.starts[index])
            yield first, leaves.digests[index], leaves.group(index), some - first


def fits(version: Commit, asked: Asked) -> bool:
    """Whether in a version like this can be told what is meant."""
    if asked.keys is not None:
        return version.keyed and set(version.identity) <= set(_names_of(asked.keys))
    try:
        Filter(version.schema, asked.where)
    except (SchemaError, BadInput):
        return False
    return True


def _names_of(rows: RowsIn) -> list[str]:
    if isinstance(rows, (list, tuple)):
        return list(rows[0]) if rows else []
    return list(rows.schema.names) if hasattr(rows, "schema") else list(pa.table(rows).column_names)
