"""A view as a pyarrow.dataset.Dataset: what DuckDB, polars, pandas and pyarrow's own compute accept as a table that they may scan.

These engines call `scanner(columns=, filter=)` with the columns that a query needs and those of its conditions that pyarrow can express,
and then `to_reader()` of what they get. pyarrow lets a class outside of it implement that and nothing below it (no fragments), so
everything else that a Dataset can do is said here in terms of `scanner`, or refused: the inherited methods would work on a C++ dataset
that does not exist.

A scan runs on the threads of who reads it. pyarrow's own Scanner.from_batches would run it ahead on threads of Arrow's, which nobody
waits for: a query with a LIMIT left one inside of Python when the interpreter ended, and the process with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from leptonstore.dataset.predicate import Predicate, columns_of, project, widened
from leptonstore.format.page import fixed_width

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset

Columns = list[str] | dict[str, pc.Expression] | None


class ArrowDataset(pads.Dataset):
    """`dataset` (a version or a view), for engines that read pyarrow datasets. Any thread; pickles.

    widen: show float16 as float32, which every engine knows (DuckDB has no float16).
    """

    def __init__(self, dataset: Dataset, filter: pc.Expression | None = None, widen: bool = False) -> None:
        # Not the base class's: it is for datasets that C++ knows.
        self._dataset, self._filter, self._widen = dataset, filter, widen

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowDataset, (self._dataset, self._filter, self._widen)

    def __repr__(self) -> str:
        return f"<ArrowDataset of {self._dataset!r}{'' if self._filter is None else f' where {self._filter}'}>"

    @property
    def schema(self) -> pa.Schema:
        """Of the rows that a scan without columns gives."""
        return widened(self._dataset.schema) if self._widen else self._dataset.schema

    @property
    def partition_expression(self) -> pc.Expression:
        """What holds for all rows: nothing is known."""
        return pc.scalar(True)

    # -- scanning ------------------------------------------------------------------------------------------------

    def scanner(
        self, columns: Columns = None, filter: pc.Expression | None = None, batch_size: int = 131_072, **options: Any
    ) -> Scan:
        """What reads the rows. Other options of pyarrow's scanners (readahead, threads) are accepted and change nothing.

        Raises SchemaError (columns) and BadInput (the filter, or expressions for columns) here; while it is read, ChunkMissing or
        ChunkCorrupt.
        """
        whole = self.schema
        if isinstance(columns, dict):
            wanted = columns_of(list(columns.values()), whole)
        else:
            wanted = list(dict.fromkeys(whole.names if columns is None else columns))
        schema = pa.schema([whole.field(field.name) for field in self._dataset.fields(wanted)])
        if isinstance(columns, dict):
            projected = project(columns, schema.empty_table()).schema
        else:
            projected = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        combined = self._both(filter)
        predicate = None if combined is None else Predicate(combined, self._dataset.schema)
        return Scan(lambda: self._batches(schema, predicate, batch_size), whole, projected, columns)

    def _both(self, filter: pc.Expression | None) -> pc.Expression | None:
        given = [one for one in (self._filter, filter) if one is not None]
        return given[0] & given[1] if len(given) == 2 else given[0] if given else None

    def _batches(self, schema: pa.Schema, predicate: Predicate | None, batch_size: int) -> Iterator[pa.RecordBatch]:
        names = schema.names
        if not names:  # only how many rows there are: of the least column
            names = predicate.columns if predicate is not None else [_cheapest(self._dataset.schema)]
        for batch in self._dataset.scan(names, predicate):
            batch = batch.select(schema.names)
            if batch.schema.types != schema.types:
                batch = batch.cast(schema)
            for start in range(0, batch.num_rows, batch_size):
                yield batch.slice(start, batch_size)

    def to_batches(self, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        """The batches of `scanner` with the same arguments."""
        return self.scanner(*arguments, **options).to_batches()

    def to_table(self, *arguments: Any, **options: Any) -> pa.Table:
        """All of `scanner` with the same arguments, in memory."""
        return self.scanner(*arguments, **options).to_table()

    def head(self, num_rows: int, *arguments: Any, **options: Any) -> pa.Table:
        """The first rows of `scanner` with the same arguments; no more is read than they need."""
        return self.scanner(*arguments, **options).head(num_rows)

    def filter(self, expression: pc.Expression) -> ArrowDataset:
        """The same, of the rows that `expression` is true for; nothing is read yet."""
        return ArrowDataset(self._dataset, self._both(expression), self._widen)

    def count_rows(self, filter: pc.Expression | None = None, **options: Any) -> int:
        """How many rows there are (that fit)."""
        combined = self._both(filter)
        return len(self._dataset) if combined is None else self._dataset.count(combined)

    def take(
        self,
        indices: Sequence[int] | pa.Array,
        columns: Columns = None,
        filter: pc.Expression | None = None,
        **options: Any,
    ) -> pa.Table:
        """Rows by their positions."""
        if self._both(filter) is None and not isinstance(columns, dict):
            rows = indices.to_numpy(zero_copy_only=False) if isinstance(indices, pa.Array) else indices
            table = self._dataset.take(rows, columns)
            return table.cast(widened(table.schema)) if self._widen else table
        return self.to_table(columns, filter).take(indices)

    # -- said in terms of a table ----------------------------------------------------------------------------------

    def sort_by(self, sorting: str | list[tuple[str, str]], **options: Any) -> pads.InMemoryDataset:
        """Sorted, in memory."""
        return pads.InMemoryDataset(self.to_table().sort_by(sorting))

    def join(self, right_dataset: pads.Dataset, *arguments: Any, **options: Any) -> pads.InMemoryDataset:
        """Joined with another dataset, in memory; see pyarrow.Table.join."""
        return pads.InMemoryDataset(self.to_table().join(right_dataset.to_table(), *arguments, **options))

    def join_asof(self, right_dataset: pads.Dataset, *arguments: Any, **options: Any) -> pads.InMemoryDataset:
        """As-of join with another dataset, in memory; see pyarrow.Table.join_asof."""
        return pads.InMemoryDataset(self.to_table().join_asof(right_dataset.to_table(), *arguments, **options))

    def get_fragments(self, filter: pc.Expression | None = None) -> Iterator[Any]:
        """Refused: pyarrow has no way to make fragments outside of it."""
        raise NotImplementedError(
            "a LeptonStore dataset has no pyarrow fragments; use scanner(), to_batches() or select()"
        )

    def replace_schema(self, schema: pa.Schema) -> pads.Dataset:
        """Refused: the schema is that of the version."""
        raise NotImplementedError("the schema of a LeptonStore dataset is that of its version; cast what you read")


class Scan:
    """What pyarrow.dataset.Scanner is to its users: something to read once or several times, each time anew."""

    def __init__(
        self, batches: Callable[[], Iterator[pa.RecordBatch]], whole: pa.Schema, projected: pa.Schema, columns: Columns
    ) -> None:
        self.dataset_schema, self.projected_schema = whole, projected
        self._batches, self._columns = batches, columns

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in their order; no batch is empty."""
        for batch in self._batches():
            if isinstance(self._columns, dict):
                yield from project(self._columns, pa.Table.from_batches([batch])).to_batches()
            else:
                yield batch if self._columns is None else batch.select(self._columns)

    def to_reader(self) -> pa.RecordBatchReader:
        """The rows as a stream, read as it is asked."""
        return pa.RecordBatchReader.from_batches(self.projected_schema, self.to_batches())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def to_table(self) -> pa.Table:
        """All rows, in memory."""
        return pa.Table.from_batches(list(self.to_batches()), self.projected_schema)

    def head(self, num_rows: int) -> pa.Table:
        """The first rows."""
        found: list[pa.RecordBatch] = []
        left = num_rows
        for batch in self.to_batches() if left > 0 else ():
            found.append(batch.slice(0, left))
            left -= found[-1].num_rows
            if left <= 0:
                break
        return pa.Table.from_batches(found, self.projected_schema)

    def count_rows(self) -> int:
        """How many rows there are."""
        return sum(batch.num_rows for batch in self._batches())

    def take(self, indices: Any) -> pa.Table:
        """Rows by their positions; all are read."""
        return self.to_table().take(indices)


def _cheapest(schema: pa.Schema) -> str:
    """A column whose pages are small."""
    sizes = [(width if (width := fixed_width(field.type)) is not None else 1 << 20, field.name) for field in schema]
    return min(sizes, key=lambda one: one[0])[1]
