"""Running one operation over a table, for tests of operations; some texts."""

from __future__ import annotations

import pyarrow as pa
from process_data import write

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import text_field
from leptonstore.process.operation import Made, Operation, RowOperation
from leptonstore.store import Store


def applied(operation: Operation, table: pa.Table) -> Made:
    assert isinstance(operation, RowOperation)
    batch = table.combine_chunks().to_batches()[0]
    return operation.apply(batch.select(operation.reads(table.schema)))


TEXTS = ["to be or not to be", "", "that is the question", None, "whether 'tis nobler — in the mind", "to suffer"] * 5


def texts(store: Store, values: list[str | None] = TEXTS) -> Dataset:
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), text_field("text")])
    table = pa.Table.from_arrays([pa.array(range(len(values))), pa.array(values, pa.string())], schema=schema)
    return write(store, "texts", table, ["id"])
