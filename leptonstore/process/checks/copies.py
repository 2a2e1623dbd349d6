"""Rows of equal content: what the search for duplicates and the one for leakage have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.errors import SchemaError
from leptonstore.process import columns as column_values
from leptonstore.process import digests
from leptonstore.process.checks import chosen
from leptonstore.process.checks.check import TableCheck

Rows = NDArray[np.int64]
FEATURES = pa.schema([("content", digests.DIGEST_TYPE), ("side", pa.string()), ("label", pa.string())])


@dataclass(frozen=True)
class Copies:
    """Rows in an order in which those of equal content stand together. starts: whether a row is the first of its content."""

    rows: Rows
    starts: NDArray[np.bool_]

    @property
    def group(self) -> Rows:
        """Of each row, the number of its content."""
        return np.cumsum(self.starts) - 1

    @property
    def first(self) -> Rows:
        """Of each row, the first row of its content."""
        return self.rows[np.maximum.accumulate(np.where(self.starts, np.arange(len(self.rows)), 0))]


def copies(content: pa.Array, within: NDArray[Any] | None = None, rank: NDArray[Any] | None = None) -> Copies:
    """content: digests; rows without one are left out. within: what has to be equal, too. Rows of one content stand in the order of `rank`,
    then of their numbers."""
    rows = np.flatnonzero(~column_values.null_mask(content))
    keys = list(digests.as_numbers(content)[rows].T)
    if within is not None:
        keys.append(within[rows])
    order = np.lexsort((rows, *([] if rank is None else [rank[rows]]), *keys))
    starts = np.ones(len(rows), np.bool_)
    starts[1:] = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
    return Copies(rows[order], starts)


def codes(names: pa.Array) -> tuple[NDArray[np.int64], list[str]]:
    """Strings as numbers, and what they stand for; "" for null."""
    known = names.fill_null("").dictionary_encode()
    return known.indices.to_numpy(zero_copy_only=False).astype(np.int64), known.dictionary.to_pylist()


def contradictions(label: pa.Array, there: Rows, here: Rows) -> list[str]:
    """For pairs of rows of one content, what a detail adds where their labels are not the same; "" elsewhere."""
    code, names = codes(label)
    return [
        "" if a == b else f", labelled {names[a] or 'nothing'} there and {names[b] or 'nothing'} here"
        for a, b in zip(code[there].tolist(), code[here].tolist(), strict=True)
    ]


@dataclass(frozen=True)
class ContentCheck(TableCheck):
    """Compares rows by the digests of some columns. Features: digest, and the names of side and label.

    Nothing is read of large values: their digests stand in the pages. 16 bytes of digest are held for each row, and its side and label.
    columns: all of them are equal; default: all images, texts and tokens, else the strings that are long. A row in which one is null has no
    equal.
    split: the column that says to which side of a split a row belongs, class labels or strings.
    """

    memoised: ClassVar[bool] = False  # to digest digests costs as much as to look up
    columns: Sequence[str] = ()
    split: str = "split"

    def bound(self, source: Dataset, schema: pa.Schema) -> Self:
        """With the names of the columns; where no column says that it holds content, the one of long strings."""
        try:
            return replace(self, columns=self.content(schema))
        except SchemaError:
            from leptonstore.process.gallery import text_column  # which shows findings, and so knows checks

            found = None if self.columns else text_column(source)
            if found is None or found not in schema.names:
                raise
            return replace(self, columns=(found,))

    def content(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns that are compared. Raises SchemaError."""
        return tuple(self.columns) or chosen.content_columns(self.name, schema, ())

    def _named(self, schema: pa.Schema) -> tuple[str | None, str | None]:
        """The columns of sides and labels, as far as there are any."""
        return chosen.split_column(self.name, schema, self.split), next(iter(column_values.label_columns(schema)), None)

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """Content, side, label."""
        for name in self.content(schema):
            column_values.field_of(self.name, schema, name)
        return tuple(dict.fromkeys((*self.content(schema), *filter(None, self._named(schema)))))

    def by_digest(self, schema: pa.Schema) -> tuple[str, ...]:
        """The content, as far as it is no side or label."""
        return tuple(name for name in self.content(schema) if name not in self._named(schema))

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """As the class says."""
        self.looks_at(schema)
        return FEATURES

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """As the class says."""
        content = digests.combined([digests.digests_in(batch, name) for name in self.content(batch.schema)])
        named = [
            pa.nulls(batch.num_rows, pa.string()) if name is None else chosen.named_classes(batch, name)
            for name in self._named(batch.schema)
        ]
        return pa.RecordBatch.from_arrays([content, *named], schema=FEATURES)
