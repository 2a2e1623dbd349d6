"""Edits of rows, each one commit: append, upsert, update, delete. Columns: leptonstore/dataset/columns.py.

    ds = ds.append(table, message="200 more")            rows at the end, or where their keys belong
    ds = ds.upsert(table)                                keyed: rows take the place of those with their keys, new keys come in
    ds = ds.update(table)                                keyed: some columns of rows that exist
    ds = ds.delete(where="score < 0.5")                  or keys=table, or rows=[3, 17]

An edit is made from the newest version of the branch and published as its child, whole or not at all. When another writer is faster, it is
made again from what that one published. The exceptions are what names rows by their numbers, which belong to one version, and rows from a
reader that can be read once only: then it is a Conflict.
An edit that changes nothing makes no commit and returns the version that there is. Only row groups that change are read (splice.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.groups import read_column, stored_columns
from leptonstore.dataset.keyed import KeyFinder, keys_of, said_key, sorted_rows
from leptonstore.dataset.refs import ref_name
from leptonstore.dataset.row_numbers import rows_within
from leptonstore.dataset.rows_in import RowsIn, batches_in, can_be_read_again
from leptonstore.dataset.rules import check_rows, check_unique
from leptonstore.dataset.source import Source
from leptonstore.dataset.splice import Splice, splice
from leptonstore.dataset.tree import Tree, TreeReader
from leptonstore.dataset.values import Column, concat, resolve
from leptonstore.dataset.where import Filter
from leptonstore.dataset.write import publish_commit
from leptonstore.digest import parse_hex
from leptonstore.errors import BadInput, CommitExpired, Conflict, DuplicateKey, RefMissing, SchemaError
from leptonstore.format.commit import Commit
from leptonstore.format.node import RowGroup
from leptonstore.store import Store

Progress = Callable[[int], None]


def _silent(rows: int) -> None:
    """No progress."""


class Changed(NamedTuple):
    """What an edit made of a version. `said`: the message when the caller gives none. adds_values: whether values came in."""

    tree: Tree
    schema: pa.Schema
    identity: tuple[str, ...]
    said: str
    lineage: dict[str, Any]
    adds_values: bool


def commit_change(
    base: Dataset,
    change: Callable[[Dataset], Changed | None],
    message: str,
    author: str,
    rebase: bool,
    shared: bool = True,
) -> Dataset:
    """Publish what `change` makes of the newest version of the branch that `base` is on; None: nothing changes.

    rebase: also when that is another version than `base`, and again after a lost race. shared: see `publish_commit`. Raises Conflict,
    RefMissing, BadInput, StoreFull.
    """
    if base.selection is not None:
        raise BadInput(f"{base!r} is a selection; edit the version that it was taken from")
    store, ref = base.store, ref_name("dataset", base.name, base.ref)
    for _ in range(limits.LOG_APPEND_TRIES_MAX):
        store.refresh()
        record = store.state.refs.get(ref)
        if record is None:
            raise RefMissing(f"{base.name}@{base.ref} is no branch: open the branch that shall be edited")
        if record.commit != base.commit:
            if not rebase:
                raise Conflict(
                    f"{base.name}@{base.ref} is {record.commit[:12]} by now, and this edit is one of {base.commit[:12]}: "
                    "nothing was published; open the branch again"
                )
            base = Dataset(store, base.name, base.ref, record.commit)
        changed = change(base)
        if changed is None or _same(changed, base.commit_object):
            return base
        commit = Commit(
            kind="dataset",
            schema=changed.schema,
            identity=changed.identity,
            root=changed.tree.root,
            rows=changed.tree.rows,
            plain_bytes=changed.tree.plain_bytes,
            parents=(parse_hex(base.commit),),
            message=message or changed.said,
            lineage=changed.lineage,
            keyed=base.commit_object.keyed,
        )
        if changed.adds_values:
            check_unique(store, base.name, base.ref, commit)
        try:
            digest = publish_commit(store, commit, ref, base.commit, author=author, shared=shared)
            return Dataset(store, base.name, base.ref, digest)
        except CommitExpired:
            raise
        except Conflict:
            if not rebase:
                raise
    raise Conflict(f"{base.name}@{base.ref} is too busy: others were always faster; run it again")


def _same(changed: Changed, commit: Commit) -> bool:
    same_schema = changed.schema.equals(commit.schema, check_metadata=True)
    return changed.tree.root == commit.root and same_schema and changed.identity == commit.identity


def append(base: Dataset, rows: RowsIn, message: str = "", author: str = "", progress: Progress = _silent) -> Dataset:
    """`rows` at the end of the table, or in a keyed table where their keys belong.

    rows: see rows_in.py; a `Source` is streamed. Raises SchemaError, DuplicateKey (a key that is there, or comes twice), RuleBroken.
    """

    def change(head: Dataset) -> Changed | None:
        if head.commit_object.keyed:
            return _merge(head, rows, "append", progress)
        at, count = head.commit_object.rows, 0

        def splices() -> Iterator[Splice]:
            nonlocal count
            for columns in _stored(head, rows):
                count += len(columns[0].values)
                yield Splice(at, 0, [columns])

        tree = splice(head, splices(), progress)
        return _changed(head, tree, f"append {count:,} rows", "append", rows, count) if count else None

    return commit_change(base, change, message, author, rebase=can_be_read_again(rows), shared=False)


def upsert(base: Dataset, rows: RowsIn, message: str = "", author: str = "", progress: Progress = _silent) -> Dataset:
    """Rows take the place of those with the same keys; rows with new keys come in. Only for keyed tables.

    Raises BadInput (no keyed table), SchemaError, DuplicateKey (a key that comes twice in `rows`), RuleBroken.
    """
    _require_keyed(base, "upsert")
    again = can_be_read_again(rows)
    return commit_change(base, lambda head: _merge(head, rows, "upsert", progress), message, author, rebase=again)


def update(base: Dataset, rows: RowsIn, message: str = "", author: str = "", progress: Progress = _silent) -> Dataset:
    """Set some columns of rows that exist: `rows` has the key and the columns that change. Only for keyed tables.

    `rows` is held in memory. Raises BadInput (no keyed table), SchemaError (a key that is not there), DuplicateKey, RuleBroken.
    """
    _require_keyed(base, "update")
    again = can_be_read_again(rows)
    return commit_change(base, lambda head: _update(head, rows, progress), message, author, rebase=again)


def delete(
    base: Dataset,
    where: Any = None,
    keys: RowsIn = None,
    rows: Sequence[int] | None = None,
    message: str = "",
    author: str = "",
    progress: Progress = _silent,
) -> Dataset:
    """Take rows out: those for which `where` holds (text or expression, see where.py), those with these `keys` (a table with the key
    columns, or a list of values when that is one; keys that are not there are passed over), or these row numbers. One of the three.

    Raises BadInput, SchemaError; Conflict for row numbers of a version that is not the newest.
    """
    if sum(one is not None for one in (where, keys, rows)) != 1:
        raise BadInput("say which rows to delete: by a condition, by keys, or by row numbers, and by one of these only")
    if keys is not None:
        _require_keyed(base, "delete by keys")
        keys = _key_table(base, keys)

    def change(head: Dataset) -> Changed | None:
        count = 0
        if where is not None:
            found = matching(head, where)
        elif keys is not None:
            found = _rows_of_keys(head, keys)
        else:
            there = head.commit_object.rows
            found = iter([rows_within(() if rows is None else rows, there, f"{head.name}@{head.ref}")])

        def splices() -> Iterator[Splice]:
            nonlocal count
            for some in found:
                count += len(some)
                for run in np.split(some, np.flatnonzero(np.diff(some) != 1) + 1) if len(some) else ():
                    yield Splice(int(run[0]), len(run))

        tree = splice(head, splices(), progress)
        return _changed(head, tree, f"delete {count:,} rows", "delete", None, count) if count else None

    return commit_change(base, change, message, author, rebase=rows is None and can_be_read_again(keys))


def matching(head: Dataset, where: Any) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Row numbers for which a condition holds, ascending, by row group. Only columns of the condition are read, and no row group whose
    bounds say that there are none."""
    condition, commit = Filter(head.schema, where), head.commit_object
    if commit.root is None:
        return
    name = f"{head.name}@{head.ref}"
    reader, row = TreeReader(head.store, commit.root, commit.rows, name), 0
    while row < commit.rows:
        span, group = reader.node(0, row)
        assert isinstance(group, RowGroup)
        row = span.end
        yield span.start + matching_in(head.store, head.schema, condition, group, span.start, name)


def matching_in(
    store: Store, schema: pa.Schema, condition: Filter, group: RowGroup, first: int, name: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions in a row group (which begins at row `first` of version `name`) of the rows for which a condition holds."""
    if not condition.may_hold(group):
        return np.empty(0, np.int64)
    arrays = []
    for column in condition.columns:
        field = schema.field(column)
        stored = read_column(store, group.columns[schema.get_field_index(column)], field, first, name)
        arrays.append(resolve(store, stored, field.type))
    return condition.rows(pa.RecordBatch.from_arrays(arrays, condition.columns))


def _require_keyed(base: Dataset, what: str) -> None:
    if not base.commit_object.keyed:
        raise BadInput(
            f"{base.name}@{base.ref} has no key, which {what} needs; import it with --key, or use append and delete"
        )


def _stored(head: Dataset, rows: RowsIn) -> Iterator[list[Column]]:
    """Rows that come in, checked against the schema and the rules, as pages keep them."""
    first = 0
    for batch in batches_in(rows, head.schema):
        check_rows(head.schema, batch, first)
        yield stored_columns(head.store, head.schema, batch, first)
        first += batch.num_rows


def _changed(head: Dataset, tree: Tree, said: str, operation: str, rows: RowsIn, count: int) -> Changed:
    commit = head.commit_object
    lineage: dict[str, Any] = {"operation": operation, "rows": count}
    if isinstance(rows, Source):
        lineage["source"] = rows.lineage
    return Changed(tree, commit.schema, commit.identity, said, lineage, operation != "delete")


def _merge(head: Dataset, rows: RowsIn, operation: str, progress: Progress) -> Changed | None:
    """Upsert, or an append to a keyed table, for which a key that is there is an error."""
    commit, store, count = head.commit_object, head.store, 0
    name = f"{head.name}@{head.ref}"
    finder = KeyFinder(store, commit, name)

    def splices() -> Iterator[Splice]:
        nonlocal count
        for columns in sorted_rows(store, commit.schema, commit.identity, _stored(head, rows)):
            keys = keys_of(columns, commit.schema, commit.identity).to_pylist()
            found = [finder.find(key) for key in keys]
            if operation == "append" and any(there for _, there in found):
                at = next(row for row, (_, there) in enumerate(found) if there)
                said = said_key(columns, commit.schema, commit.identity, at)
                raise DuplicateKey(f"{name} has a row with the key {said} already (row {found[at][0]}); use upsert")
            count += len(keys)
            yield from _splices(found, columns)

    tree = splice(head, splices(), progress)
    return _changed(head, tree, f"{operation} {count:,} rows", operation, rows, count) if count else None


def _splices(found: list[tuple[int, bool]], columns: list[Column]) -> Iterator[Splice]:
    """One edit for rows that stand one after another, in the old version (each replaced) or between two of its rows (all new)."""
    start = 0
    for at in range(1, len(found) + 1):
        row, there = found[start]
        if at < len(found) and found[at] == (row + (at - start if there else 0), there):
            continue
        yield Splice(row, (at - start) if there else 0, [[column.slice(start, at) for column in columns]])
        start = at


def _key_table(head: Dataset, keys: RowsIn) -> RowsIn:
    """A list or array of values as a table, where the key is one column."""
    plain = isinstance(keys, (list, tuple)) and not any(isinstance(one, Mapping) for one in keys)
    if not plain and not isinstance(keys, (pa.Array, pa.ChunkedArray, np.ndarray)):
        return keys
    if len(head.identity) != 1:
        raise BadInput(f"the key of {head.name} is {', '.join(head.identity)}: give a table with these columns")
    try:
        return pa.table({head.identity[0]: pa.array(keys) if plain or isinstance(keys, np.ndarray) else keys})
    except pa.ArrowException as error:
        raise BadInput(f"these keys are no column: {error}") from None


def _rows_of_keys(head: Dataset, keys: RowsIn) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    commit = head.commit_object
    schema = pa.schema([commit.schema.field(name) for name in commit.identity])
    finder = KeyFinder(head.store, commit, f"{head.name}@{head.ref}")
    stored = (stored_columns(head.store, schema, batch) for batch in batches_in(keys, schema))
    for columns in sorted_rows(head.store, schema, commit.identity, stored):
        found = [finder.find(key) for key in keys_of(columns, schema, commit.identity).to_pylist()]
        yield np.asarray([row for row, there in found if there], np.int64)


def _update(head: Dataset, rows: RowsIn, progress: Progress) -> Changed | None:
    commit, store, name = head.commit_object, head.store, f"{head.name}@{head.ref}"
    batches = list(batches_in(rows, commit.schema, partial=True))
    if not sum(batch.num_rows for batch in batches):
        return None
    schema = batches[0].schema
    missing = [column for column in commit.identity if column not in schema.names]
    if missing:
        raise SchemaError(f"the rows have no column {missing[0]!r}, which is the key of {name}")
    first, stored = 0, []
    for batch in batches:
        check_rows(schema, batch, first)
        stored.append(stored_columns(store, schema, batch, first))
        first += batch.num_rows
    pieces = list(sorted_rows(store, schema, commit.identity, stored))
    columns = [concat([piece[at] for piece in pieces]) for at in range(len(schema))]
    finder = KeyFinder(store, commit, name)
    found = [finder.find(key) for key in keys_of(columns, schema, commit.identity).to_pylist()]
    for at, (_, there) in enumerate(found):
        if not there:
            raise SchemaError(
                f"{name} has no row with the key {said_key(columns, schema, commit.identity, at)}; use upsert"
            )
    kept = [column for column in commit.schema.names if column not in schema.names]
    numbers = np.asarray([row for row, _ in found], np.int64)
    old = {column: head.take_stored(numbers, column) for column in kept}
    whole = [
        old[column] if column in old else columns[schema.get_field_index(column)] for column in commit.schema.names
    ]
    tree = splice(head, _splices(found, whole), progress)
    return _changed(head, tree, f"update {len(found):,} rows", "update", rows, len(found))
