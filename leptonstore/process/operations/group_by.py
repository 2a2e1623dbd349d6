"""rows.group_by: a row for each group of rows, with counts, sums, means.

    by = ["label"]      aggregates = ["count", "mean(score)", "max(taken) as last"]

    count      rows of the group                              int64
    count(c)   rows with a value in column c                  int64
    sum(c)     of integers: int64; of floats: float64; null without values
    mean(c)    float64, null without values                   std(c)   deviation of the population (numpy.std)
    min(c)     of numbers, strings, bytes, dates, times       max(c)   NaN is above all numbers, as in sort()

The new rows are sorted by the group, nulls last, and identified by it. Sums are exact until they are rounded once (exact.py), so the result
does not depend on how the rows were cut into pieces, or on which were added up first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore.dataset.values import one_array
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process import columns, exact
from leptonstore.process.columns import field_of
from leptonstore.process.operation import GroupOperation
from leptonstore.process.operations.parameters import one_of, texts

Ints = NDArray[np.int64]
_WORDS = ("count", "sum", "mean", "std", "min", "max")
_AGGREGATE = re.compile(r"\s*(\w+)\s*(?:\(\s*(.+?)\s*\))?\s*(?:\bas\s+(.+?))?\s*", re.IGNORECASE)
_ROWS = "rows"
_FLOATS, _WHOLE = "sum", "whole_sum"  # of floats, of integers
_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True)
class Aggregate:
    """One column of the result. column: "" for the count of rows."""

    word: str
    column: str
    name: str

    @classmethod
    def of(cls, text: str) -> Aggregate:
        """Of "mean(score)" or "mean(score) as name". Raises BadInput."""
        found = _AGGREGATE.fullmatch(text)
        if found is None:
            raise BadInput(
                f'{GroupBy.name}: cannot read the aggregate {text!r}; write "count", "mean(score)" or "max(a) as b"'
            )
        word, column, name = found[1].lower(), found[2] or "", found[3]
        one_of(GroupBy.name, f"the aggregate {text!r}", word, _WORDS)
        if not column and word != "count":
            raise BadInput(f'{GroupBy.name}: of which column? Write "{word}(column)" instead of {text!r}')
        return cls(word, column, name or (f"{column}_{word}" if column else word))


@dataclass(frozen=True)
class GroupBy(GroupOperation):
    """Makes a row of each group of rows, with counts, sums, means.

    by: columns that say which rows belong together; null is a value. aggregates: as above; each may end in "as name".
    """

    name: ClassVar[str] = "rows.group_by"
    by: Sequence[str]
    aggregates: Sequence[str] = ("count",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", texts(self.name, "by", self.by))
        object.__setattr__(self, "aggregates", texts(self.name, "aggregates", self.aggregates))
        if not self.by or not self.aggregates:
            raise BadInput(f"{self.name}: name at least one column in `by`, and one of `aggregates`")
        names = [*self.by, *(one.name for one in self.wanted)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadInput(f'{self.name}: the result would have two columns {twice[0]!r}; end one in "as name"')

    @property
    def wanted(self) -> list[Aggregate]:
        """The aggregates."""
        return [Aggregate.of(text) for text in self.aggregates]

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns of groups and of aggregates."""
        for name in self.by:
            data_type = field_of(self.name, schema, name).type
            if not _can_name(data_type):
                raise SchemaError(
                    f"{self.name}: column {name!r} ({data_type}) cannot name groups; integers, strings, bytes, dates and times can"
                )
        for one in self.wanted:
            if one.column:
                _check_fits(one, field_of(self.name, schema, one.column).type)
        return tuple(dict.fromkeys((*self.by, *self._summed())))

    def output(self, schema: pa.Schema) -> pa.Schema:
        """The groups, then the aggregates."""
        self.reads(schema)
        return pa.schema([schema.field(name) for name in self.by] + [_made(one, schema) for one in self.wanted])

    def identity(self, schema: pa.Schema) -> tuple[str, ...]:
        """What groups are called by."""
        return tuple(self.by)

    def partials(self, schema: pa.Schema) -> pa.Schema:
        """The groups, their rows, and of each column that is summed up what its aggregates need."""
        self.reads(schema)
        fields = [schema.field(name).with_name(f"by.{at}") for at, name in enumerate(self.by)]
        fields.append(pa.field(_ROWS, pa.int64(), nullable=False))
        for at, (name, words) in enumerate(self._summed().items()):
            field = schema.field(name)
            for state, kind in _states(words, field.type):
                metadata = field.metadata if state in ("min", "max") else None
                fields.append(pa.field(f"{state}.{at}", kind, metadata=metadata))
        return pa.schema(fields)

    def partial(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What the groups of these rows are so far."""
        groups, firsts = _groups([batch.column(name) for name in self.by])
        arrays = [batch.column(name).take(firsts) for name in self.by]
        arrays.append(pa.array(np.bincount(groups, minlength=len(firsts)).astype(np.int64)))
        for name, words in self._summed().items():
            arrays.extend(_measured(batch.column(name), words, groups, len(firsts)))
        return pa.RecordBatch.from_arrays(arrays, schema=self.partials(batch.schema))

    def merged(self, partials: pa.Table) -> pa.Table:
        """Groups of several partials, each once."""
        whole = partials.combine_chunks()
        names = whole.schema.names
        by = {name: one_array(whole[name]) for name in names if name.startswith("by.")}
        groups, firsts = _groups(list(by.values()))
        made: dict[str, pa.Array] = {name: column.take(firsts) for name, column in by.items()}
        for name in names:
            state, _, at = name.partition(".")
            if state in ("rows", "n"):
                made[name] = pa.array(_totals(groups, whole[name].to_numpy(), len(firsts)))
            elif state in ("min", "max"):
                made[name] = _extreme(one_array(whole[name]), groups, len(firsts), state == "max")
            elif state in (_FLOATS, _WHOLE, "squares"):
                added = exact.merged(groups, one_array(whole[name]), one_array(whole[f"{state}_amounts.{at}"]))
                made[name], made[f"{state}_amounts.{at}"] = added.to_arrow(len(firsts))
        return pa.Table.from_arrays([made[name] for name in names], schema=whole.schema)

    def result(self, partials: pa.Table) -> pa.Table:
        """The new rows. Raises BadInput for a sum of integers beyond int64."""
        whole = self.merged(partials)
        keys = [(name, "ascending") for name in whole.schema.names if name.startswith("by.")]
        whole = whole.take(pc.sort_indices(whole, sort_keys=keys)).combine_chunks()
        summed = list(self._summed())
        fields = [whole.schema.field(f"by.{at}").with_name(name) for at, name in enumerate(self.by)]
        arrays = [one_array(whole[f"by.{at}"]) for at in range(len(self.by))]
        for one in self.wanted:
            at = summed.index(one.column) if one.column else 0
            field, array = _finished(one, at, whole)
            fields.append(field)
            arrays.append(array)
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def _summed(self) -> dict[str, list[str]]:
        """Columns that are summed up, with the words of their aggregates."""
        found: dict[str, list[str]] = {}
        for one in self.wanted:
            if one.column:
                found.setdefault(one.column, []).append(one.word)
        return found


def _can_name(data_type: pa.DataType) -> bool:
    kinds = pa.types
    if isinstance(data_type, pa.BaseExtensionType) or kinds.is_floating(data_type):
        return False
    return columns.is_number(data_type) or _has_order(data_type)


def _has_order(data_type: pa.DataType) -> bool:
    """Whether values have a least one (and are no numbers)."""
    kinds = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        return False
    texts_ = kinds.is_string(data_type) or kinds.is_large_string(data_type) or columns.is_binary(data_type)
    return bool(
        texts_ or kinds.is_temporal(data_type) or kinds.is_decimal(data_type) or kinds.is_fixed_size_binary(data_type)
    )


def _check_fits(one: Aggregate, data_type: pa.DataType) -> None:
    number = not isinstance(data_type, pa.BaseExtensionType) and columns.is_number(data_type)
    if one.word in ("sum", "mean", "std") and not number:
        raise SchemaError(f"{GroupBy.name}: {one.word}({one.column}) needs numbers, and the column holds {data_type}")
    if one.word in ("min", "max") and not (number or _has_order(data_type)):
        raise SchemaError(f"{GroupBy.name}: {one.word}({one.column}): values of type {data_type} have no order")


def _made(one: Aggregate, schema: pa.Schema) -> pa.Field:
    """The column of an aggregate."""
    if one.word == "count":
        return pa.field(one.name, pa.int64(), nullable=False)
    field = schema.field(one.column)
    if one.word in ("min", "max"):
        return field.with_name(one.name).with_nullable(True)
    floats = one.word != "sum" or pa.types.is_floating(field.type)
    return pa.field(one.name, pa.float64() if floats else pa.int64())


def _states(words: Sequence[str], data_type: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """What is kept of a column, and in which type."""
    yield "n", pa.int64()
    total = _FLOATS if pa.types.is_floating(data_type) else _WHOLE
    for state, needed in ((total, {"sum", "mean", "std"}), ("squares", {"std"})):
        if needed.intersection(words):
            yield state, pa.list_(pa.int16())
            yield f"{state}_amounts", pa.list_(pa.int64())
    for state in ("min", "max"):
        if state in words:
            yield state, data_type


def _measured(values: pa.Array, words: Sequence[str], groups: Ints, count: int) -> Iterator[pa.Array]:
    """The states of one column, in the order of `_states`."""
    valid = ~columns.null_mask(values)
    yield pa.array(np.bincount(groups[valid], minlength=count).astype(np.int64))
    plain = columns.numbers(values) if columns.is_number(values.type) else None
    for function, needed in ((exact.sums, {"sum", "mean", "std"}), (exact.square_sums, {"std"})):
        if needed.intersection(words):
            assert plain is not None
            yield from function(plain, groups[valid]).to_arrow(count)
    for state in ("min", "max"):
        if state in words:
            yield _extreme(values, groups, count, state == "max")


def _groups(keys: Sequence[pa.Array]) -> tuple[Ints, Ints]:
    """(group of each row, the first row of each group); groups are 0, 1, … as they come."""
    groups, count = np.zeros(len(keys[0]), np.int64), 1
    for at, key in enumerate(keys):
        coded = key.dictionary_encode(null_encoding="encode")
        groups = groups * len(coded.dictionary) + coded.indices.to_numpy(zero_copy_only=False)
        count *= len(coded.dictionary)
        if at:  # pairs that there are; so the numbers stay below those of rows
            coded = pa.array(groups).dictionary_encode()
            groups, count = coded.indices.to_numpy().astype(np.int64), len(coded.dictionary)
    firsts = np.zeros(count, np.int64)
    firsts[groups[::-1]] = np.arange(len(groups))[::-1]
    return groups, firsts


def _totals(groups: Ints, values: Ints, count: int) -> Ints:
    totals = np.zeros(count, np.int64)
    np.add.at(totals, groups, values)
    return totals


def _extreme(values: pa.Array, groups: Ints, count: int, largest: bool) -> pa.Array:
    """The least or greatest value of each group, null where it has none."""
    if columns.is_number(values.type):
        return _extreme_number(values, groups, count, largest)
    valid = np.flatnonzero(~columns.null_mask(values))
    present = values.take(pa.array(valid))
    order = pc.sort_indices(present).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    best = np.full(count, -1 if largest else len(order), np.int64)
    (np.maximum if largest else np.minimum).at(best, groups[valid], ranks)
    none = (best < 0) | (best >= len(order))
    rows = pa.array(order[np.where(none, 0, best)] if len(order) else np.zeros(count, np.int64), mask=none)
    return present.take(rows)


def _extreme_number(values: pa.Array, groups: Ints, count: int, largest: bool) -> pa.Array:
    """The same of numbers. NaN is above all; -0.0 becomes 0.0, and every NaN the same one: equal values are the same bytes."""
    where = groups[~columns.null_mask(values)]
    plain = columns.numbers(values)
    kind = plain.dtype
    if kind.kind == "f":
        plain = np.where(np.isnan(plain), kind.type(np.nan), plain + kind.type(0))
        best = np.full(count, -np.inf if largest else np.nan, kind)
        with np.errstate(invalid="ignore"):  # NaN is meant
            (np.maximum if largest else np.fmin).at(best, where, plain)
    else:
        ends = np.iinfo(kind)
        best = np.full(count, ends.min if largest else ends.max, kind)
        (np.maximum if largest else np.minimum).at(best, where, plain)
    none = np.bincount(where, minlength=count) == 0
    found = pa.array(best, mask=none, from_pandas=False)
    return found if found.type == values.type else found.cast(values.type)


def _finished(one: Aggregate, at: int, whole: pa.Table) -> tuple[pa.Field, pa.Array]:
    """The column of an aggregate, of merged partials. at: the number of its column."""
    if one.word == "count":
        return pa.field(one.name, pa.int64(), nullable=False), one_array(whole[f"n.{at}" if one.column else _ROWS])
    if one.word in ("min", "max"):
        return whole.schema.field(f"{one.word}.{at}").with_name(one.name).with_nullable(True), one_array(
            whole[f"{one.word}.{at}"]
        )
    counts = whole[f"n.{at}"].to_numpy().tolist()
    floats = f"{_FLOATS}.{at}" in whole.schema.names
    totals = _sums_of(whole, _FLOATS if floats else _WHOLE, at)
    kind = pa.int64() if one.word == "sum" and not floats else pa.float64()
    values: list[Any]
    if one.word == "sum":
        values = [exact.to_float(total) if floats else _whole_number(one, total) for total in totals]
    elif one.word == "mean":
        values = [exact.mean_of(total, max(n, 1)) for total, n in zip(totals, counts, strict=True)]
    else:
        squares = _sums_of(whole, "squares", at)
        values = [exact.deviation_of(a, b, max(n, 1)) for a, b, n in zip(totals, squares, counts, strict=True)]
    present = [value if n else None for value, n in zip(values, counts, strict=True)]
    return pa.field(one.name, kind), pa.array(present, kind, from_pandas=False)


def _sums_of(whole: pa.Table, state: str, at: int) -> list[Fraction | float]:
    rows = np.arange(len(whole))
    return exact.merged(rows, one_array(whole[f"{state}.{at}"]), one_array(whole[f"{state}_amounts.{at}"])).of(
        len(whole)
    )


def _whole_number(one: Aggregate, total: Fraction | float) -> int:
    value = int(total)
    if not _INT64.min <= value <= _INT64.max:
        raise BadInput(
            f"{GroupBy.name}: sum({one.column}) of a group is {value}, beyond 64 bits; ask for mean({one.column})"
        )
    return value
