"""Filtering: the rows of a view that a filter is true for, reading as little as the nodes allow.

    nodes of 256 row groups -> those in which the filter can be true (predicate.py) -> the filter's columns -> rows that fit
        -> the other columns, of those rows only: of long strings and bytes just the pages that hold one

So a row group whose bounds say no costs its node, and one without a row that fits costs the filter's columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.ahead import read_ahead
from leptonstore.dataset.predicate import Predicate
from leptonstore.dataset.scan import slice_ends
from leptonstore.dataset.tree import Leaf, Rows
from leptonstore.errors import BadInput

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset

Span = tuple[int, Leaf, "Rows | None"]


def filtered(
    ds: Dataset, predicate: Predicate, fields: list[pa.Field] | None
) -> Iterator[tuple[Rows, pa.RecordBatch | None]]:
    """(positions in the view, those rows' `fields`; None when nobody asked for any), in the view's order.

    Raises BadInput (the filter fails on a value), ChunkMissing or ChunkCorrupt.
    """
    looked_at = [ds.schema.field(name) for name in predicate.columns]

    def read(span: Span) -> list[tuple[Rows, pa.RecordBatch | None]]:
        first, leaf, rows = span
        base = np.arange(leaf.first, leaf.end) if rows is None else rows
        try:
            fits = np.flatnonzero(predicate.mask(ds.read_rows(base, looked_at)))
        except BadInput as error:
            raise BadInput(f"{ds.label} rows {leaf.first}-{leaf.end - 1}: {error}") from None
        if fields is None or not len(fits):
            return [(first + fits, None)]
        return [(first + fits[start:end], batch) for start, end, batch in _slices(ds, base[fits], fields)]

    for found in read_ahead(_candidates(ds, predicate), read):
        yield from ((positions, batch) for positions, batch in found if len(positions))


def _slices(ds: Dataset, rows: Rows, fields: list[pa.Field]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Rows of one row group in batches that refer to a bounded number of bytes."""
    columns = ds.pages.gather(rows, fields) if fields else []
    start = 0
    for end in slice_ends(columns, len(rows)):
        yield start, end, ds.ask([column.slice(start, end) for column in columns], fields, rows[start:end]).batch()
        start = end


def _candidates(ds: Dataset, predicate: Predicate) -> Iterator[Span]:
    """The row groups in which the filter can be true."""
    spans = ds.spans()
    while window := list(islice(spans, limits.SCAN_GROUPS_BATCH)):
        leaves = list(dict.fromkeys(leaf for _, leaf, _ in window))
        possible = dict(zip(leaves, predicate.possible(ds.pages.groups(leaves)), strict=True))
        yield from (span for span in window if possible[span[1]])
