"""A view as a pyarrow.dataset.Dataset: what DuckDB, polars, pandas and pyarrow's own compute accept as a table that they may scan.

These engines call `scanner(columns=, filter=)` with the columns that a query needs and those of its conditions that pyarrow can express.
pyarrow lets a class outside of it implement that method and nothing below it (no fragments), so everything else that a Dataset can do is
said here in terms of `scanner`, or refused: the inherited methods would work on a C++ dataset that does not exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from leptonstore.dataset.predicate import Predicate, columns_of, widened
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
    ) -> pads.Scanner:
        """A scanner that can be used once. Other options of pyarrow's scanners (readahead, threads) are accepted and change nothing.

        Raises SchemaError (columns) and BadInput (the filter) here; while it is read, ChunkMissing or ChunkCorrupt.
        """
        whole = self.schema
        if isinstance(columns, dict):
            wanted = columns_of(list(columns.values()), self._dataset.schema)
        else:
            wanted = list(dict.fromkeys(whole.names if columns is None else columns))
        fields = self._dataset.fields(wanted)
        combined = self._both(filter)
        predicate = None if combined is None else Predicate(combined, self._dataset.schema)
        schema = pa.schema([whole.field(field.name) for field in fields])
        batches = self._batches(schema, predicate, batch_size)
        return pads.Scanner.from_batches(batches, schema=schema, columns=wanted if columns is None else columns)

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


def _cheapest(schema: pa.Schema) -> str:
    """A column whose pages are small."""
    sizes = [(width if (width := fixed_width(field.type)) is not None else 1 << 20, field.name) for field in schema]
    return min(sizes, key=lambda one: one[0])[1]
