"""Edits of columns, each one commit: add, rewrite, drop, rename, cast. Only pages of that column are written, and read where its old values
are needed; then the nodes, which list the pages of all columns.

How a schema may evolve:

- add       anywhere, also a column without nulls (every row gets a value)
- drop      any column but those that identify a row: these decide where rows are cut, and in a keyed table which row is which
- rename    any column; one that identifies rows keeps doing so under its new name. Rows and pages are untouched
- cast      to a type that holds every value (1.5 to an integer is refused, and names the column); not of a column that identifies rows
- metadata  semantic type, class names, codec, rules, nullable: of any column; a column becomes non-null only if nothing in it is null
- rewrite   new values of a column that identifies no rows
- To change which columns identify rows, or their values, import the table anew, as a version of the same dataset.

Values are given in the order of the rows (then the edit belongs to one version, and a lost race is a Conflict) or made from each row group
by a function, as a constant or by a cast (then the edit is made again from what another writer published meanwhile).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.edit import Changed, Progress, commit_change
from leptonstore.dataset.feed import Feed, column_index, is_rebasable, tree_reader
from leptonstore.dataset.groups import column_parts, put_row_group, read_column, stored_columns
from leptonstore.dataset.rows_in import fit_batch
from leptonstore.dataset.rules import (
    RULES,
    Rule,
    check_column,
    check_fits,
    check_kept,
    check_rows,
    rules_of,
    with_rules,
)
from leptonstore.dataset.schema import INLINE_BYTES, PART_BYTES, check_semantics
from leptonstore.dataset.tree import Span, Tree, put_levels
from leptonstore.dataset.values import Column, resolve
from leptonstore.errors import BadInput, SchemaError
from leptonstore.format.node import Part, RowGroup
from leptonstore.format.page import as_binary, is_variable
from leptonstore.format.schema import schema_to_json

_Parts = tuple[Part, ...]


def _silent(rows: int) -> None:
    """No progress."""


def add_column(
    base: Dataset,
    field: str | pa.Field,
    values: Any,
    columns: Sequence[str] | None = None,
    at: int | None = None,
    message: str = "",
    author: str = "",
    progress: Progress = _silent,
) -> Dataset:
    """A new column. field: its name (then the type is that of the values, and it may be null) or a pa.Field.

    values: an Arrow array, numpy array or list with a value for each row; a table, RecordBatchReader or `Source` with one column; a
    function of a RecordBatch with `columns` (default: all) that returns as many values, called once a row group; or a constant.
    at: where it stands among the columns (default: last). Raises SchemaError, BadInput, RuleBroken, Conflict.
    """
    name = field if isinstance(field, str) else field.name

    def change(head: Dataset) -> Changed:
        if name in head.schema.names:
            raise SchemaError(f"{head.name} has a column {name!r} already; rewrite it, or give another name")
        feed = Feed(head, values, columns)
        made = pa.field(name, feed.type) if isinstance(field, str) else field
        index = len(head.schema) if at is None else at
        if not 0 <= index <= len(head.schema):
            raise BadInput(f"position {index}: the table has {len(head.schema)} columns")
        schema = head.schema.insert(index, made)
        check_semantics(schema)
        return _filled(head, schema, index, feed, False, f"add column {name}", progress)

    return commit_change(base, change, message, author, rebase=is_rebasable(values))


def rewrite_column(
    base: Dataset,
    name: str,
    values: Any,
    columns: Sequence[str] | None = None,
    message: str = "",
    author: str = "",
    progress: Progress = _silent,
) -> Dataset:
    """New values for a column; its type stays. The arguments are those of `add_column`."""

    def change(head: Dataset) -> Changed:
        index = column_index(head, name)
        _refuse_identity(head, name, "rewritten")
        return _filled(head, head.schema, index, Feed(head, values, columns), True, f"rewrite column {name}", progress)

    return commit_change(base, change, message, author, rebase=is_rebasable(values))


def drop_columns(base: Dataset, names: Sequence[str], message: str = "", author: str = "") -> Dataset:
    """The table without these columns. No page is read or written. Raises SchemaError (unknown, or identifies rows)."""

    def change(head: Dataset) -> Changed:
        gone = {column_index(head, name) for name in names}
        for name in names:
            _refuse_identity(head, name, "dropped")
        kept = [at for at in range(len(head.schema)) if at not in gone]
        tree = _each_group(head, lambda span, group: tuple(group.columns[at] for at in kept))
        schema = pa.schema([head.schema.field(at) for at in kept])
        return _changed(head, tree, schema, f"drop column {', '.join(names)}")

    return commit_change(base, change, message, author, rebase=True)


def rename_columns(base: Dataset, names: Mapping[str, str], message: str = "", author: str = "") -> Dataset:
    """Columns by old name get new ones. Neither rows nor nodes change. Raises SchemaError (unknown, or two of one name)."""

    def change(head: Dataset) -> Changed:
        for name in names:
            column_index(head, name)
        schema = pa.schema([field.with_name(names.get(field.name, field.name)) for field in head.schema])
        schema_to_json(schema)
        said = ", ".join(f"{old} to {new}" for old, new in names.items())
        made = _changed(head, _same_tree(head), schema, f"rename column {said}")
        return made._replace(identity=tuple(names.get(name, name) for name in head.identity))

    return commit_change(base, change, message, author, rebase=True)


def cast_column(
    base: Dataset,
    name: str,
    data_type: pa.DataType | None = None,
    metadata: Mapping[str, str | None] | None = None,
    nullable: bool | None = None,
    message: str = "",
    author: str = "",
    progress: Progress = _silent,
) -> Dataset:
    """Another type, other metadata (schema.py; None takes an entry away) or nullability for a column.

    Pages are read and written only when the type changes, or how the column is cut. The rules stay, and the new values are held against
    them. Raises SchemaError (a value does not fit, it identifies rows, it has nulls), BadInput (a rule does not fit the type), RuleBroken.
    """

    def change(head: Dataset) -> Changed:
        index = column_index(head, name)
        old = head.schema.field(index)
        new = _cast_field(old, data_type, metadata, nullable)
        schema = head.schema.set(index, new)
        schema_to_json(schema)
        check_semantics(schema)
        if new.nullable < old.nullable:
            _require_no_nulls(head, index)
        check_kept(f"{head.name}@{head.ref}", pa.schema([new]))
        rules = rules_of(new)
        if _page_settings(old) == _page_settings(new):
            if (new.metadata or {}).get(RULES) != (old.metadata or {}).get(RULES):
                for rule in rules:
                    check_column(head, new, rule)
            return _changed(head, _same_tree(head), schema, f"cast column {name}")
        _refuse_identity(head, name, "cast")

        def edit(span: Span, group: RowGroup) -> tuple[_Parts, ...]:
            stored = read_column(head.store, group.columns[index], old, span.start, f"{head.name}@{head.ref}")
            column = _cast(head, stored, old, new, span.start)
            if any(rule.kind != "unique" for rule in rules):  # what is rounded, as by a float32, may leave a range
                alone, values = pa.schema([new]), resolve(head.store, column, new.type)
                check_rows(alone, pa.RecordBatch.from_arrays([values], schema=alone), span.start)
            parts = column_parts(head.store, new, column)
            progress(span.end)
            return (*group.columns[:index], parts, *group.columns[index + 1 :])

        unique = any(rule.kind == "unique" for rule in rules)
        return _changed(head, _each_group(head, edit), schema, f"cast column {name} to {new.type}", adds_values=unique)

    return commit_change(base, change, message, author, rebase=True)


def change_rules(
    base: Dataset, name: str, add: Sequence[Rule] = (), remove: Sequence[str] = (), message: str = "", author: str = ""
) -> Dataset:
    """Give a column validation rules, or take away those of a kind. A new one is held against all rows first, and replaces one of its kind.

    Raises SchemaError (no such column), BadInput (the rule does not fit, or there is none to take away), RuleBroken.
    """

    def change(head: Dataset) -> Changed:
        index = column_index(head, name)
        field = head.schema.field(index)
        there = {rule.kind: rule for rule in rules_of(field)}
        for kind in remove:
            if there.pop(kind, None) is None:
                raise BadInput(f"column {name!r} has no rule {kind!r}; it has: {', '.join(there) or 'none'}")
        for rule in add:
            check_fits(field, rule)
            check_column(head, field, rule)
            there[rule.kind] = rule
        schema = head.schema.set(index, with_rules(field, list(there.values())))
        said = ", ".join([*map(str, add), *(f"not {kind}" for kind in remove)])
        return _changed(head, _same_tree(head), schema, f"rule for {name}: {said}")

    return commit_change(base, change, message, author, rebase=True)


def _refuse_identity(head: Dataset, name: str, what: str) -> None:
    if name in head.identity:
        raise SchemaError(
            f"column {name!r} identifies the rows of {head.name} and cannot be {what}; import the table anew with another --key"
        )


def _groups(head: Dataset) -> Iterator[tuple[Span, RowGroup]]:
    commit = head.commit_object
    if commit.root is None:
        return
    reader, row = tree_reader(head), 0
    while row < commit.rows:
        span, group = reader.node(0, row)
        assert isinstance(group, RowGroup)
        yield span, group
        row = span.end


def _each_group(head: Dataset, edit: Callable[[Span, RowGroup], tuple[_Parts, ...]]) -> Tree:
    """The tree with other columns in each row group; rows stay where they are."""
    made = []
    for span, group in _groups(head):
        made.append(put_row_group(head.store, RowGroup(group.rows, edit(span, group)), span.child.key))
    return put_levels(head.store, made)


def _same_tree(head: Dataset) -> Tree:
    commit = head.commit_object
    return Tree(commit.root, commit.rows, commit.plain_bytes)


def _changed(head: Dataset, tree: Tree, schema: pa.Schema, said: str, adds_values: bool = False) -> Changed:
    return Changed(tree, schema, head.identity, said, {"operation": said}, adds_values)


def _filled(
    head: Dataset, schema: pa.Schema, index: int, feed: Feed, replace: bool, said: str, progress: Progress
) -> Changed:
    """The column at `index` of `schema` filled by `feed`, beside the others or in the place of the old one."""
    schema_to_json(schema)
    alone = pa.schema([schema.field(index)])

    def edit(span: Span, group: RowGroup) -> tuple[_Parts, ...]:
        values = feed.take(span, group)
        batch = fit_batch(pa.RecordBatch.from_arrays([values], alone.names), alone, span.start)
        check_rows(alone, batch, span.start)
        (column,) = stored_columns(head.store, alone, batch, span.start)
        parts = column_parts(head.store, alone.field(0), column)
        progress(span.end)
        return (*group.columns[:index], parts, *group.columns[index + replace :])

    tree = _each_group(head, edit)
    feed.finish()
    return _changed(head, tree, schema, said, adds_values=True)


def _cast_field(
    old: pa.Field, data_type: pa.DataType | None, metadata: Mapping[str, str | None] | None, nullable: bool | None
) -> pa.Field:
    kept = {key.decode(): value.decode() for key, value in (old.metadata or {}).items()}
    for key, value in (metadata or {}).items():
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value
    nullable = old.nullable if nullable is None else nullable
    return pa.field(old.name, data_type if data_type is not None else old.type, nullable, kept or None)


def _page_settings(field: pa.Field) -> tuple[Any, ...]:
    """What the pages of a column depend on, beside its values."""
    metadata = field.metadata or {}
    return field.type, metadata.get(INLINE_BYTES), metadata.get(PART_BYTES)


def _require_no_nulls(head: Dataset, index: int) -> None:
    for span, group in _groups(head):
        if any(part.nulls for part in group.columns[index]):
            name = head.schema.names[index]
            raise SchemaError(f"column {name!r} has nulls in rows {span.start}-{span.end - 1}; fill them in first")


def _cast(head: Dataset, stored: Column, old: pa.Field, new: pa.Field, first_row: int) -> Column:
    if _page_settings(old)[1:] == _page_settings(new)[1:] and is_variable(old.type) and is_variable(new.type):
        # What stands elsewhere stays there; only bytes that become text have to be looked at.
        if stored.references is None:
            return Column(_cast_array(stored.values, new, first_row))
        if as_binary(new.type) == new.type or as_binary(old.type) != old.type:
            return Column(stored.values.cast(as_binary(new.type)), stored.references)
    values = _cast_array(resolve(head.store, stored, old.type), new, first_row)
    alone = pa.schema([new])
    return stored_columns(head.store, alone, pa.RecordBatch.from_arrays([values], schema=alone), first_row)[0]


def _cast_array(values: pa.Array, new: pa.Field, first_row: int) -> pa.Array:
    return fit_batch(pa.RecordBatch.from_arrays([values], [new.name]), pa.schema([new]), first_row).column(0)
