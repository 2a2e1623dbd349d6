"""Rows that arrive one by one (a queue, Kafka, sensors), written as few versions.

    with Writer(store, "events", schema, key=("partition", "offset")) as writer:
        for message in consumer:
            writer.append([{"partition": message.partition(), "offset": message.offset(), "body": message.value()}])
            if writer.flushed:          # what was appended up to here is durable
                consumer.commit()

A version is made every `rows` rows or `seconds` seconds, whichever comes first, at `flush`, and at the end. `append` returns True when it
made one. With a key that the source numbers its messages by, delivering a message twice (after a crash, say) gives the row that is there:
at least once becomes exactly once. Rows that were appended and not flushed are lost with the process: commit the consumer's offsets
after a flush, never before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.refs import MAIN
from leptonstore.dataset.rows_in import RowsIn, batches_in
from leptonstore.errors import SchemaError
from leptonstore.process.collect.collect import head_of, put_rows
from leptonstore.store import Store


class Writer:
    """Appends rows to a keyed dataset. One thread; several writers of one dataset take turns (their commits rebase)."""

    def __init__(
        self,
        store: Store,
        name: str,
        schema: pa.Schema,
        key: tuple[str, ...],
        branch: str = MAIN,
        rows: int = limits.COLLECT_COMMIT_ROWS,
        seconds: float = limits.COLLECT_FLUSH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """rows, seconds: when a version is made. Raises SchemaError, BadInput when the dataset that is there is another kind of table."""
        for one in key:
            if one not in schema.names:
                raise SchemaError(f"the key {one!r} is no column; there are {', '.join(schema.names)}")
        fields = [one.with_nullable(False) if one.name in key else one for one in schema]
        self.schema = pa.schema(fields, metadata=schema.metadata)
        self._store, self._name, self._branch, self._key = store, name, branch, key
        self._rows_max, self._seconds, self._clock = rows, seconds, clock
        self.dataset: Dataset | None = head_of(store, name, branch, self.schema, key)
        self._waiting: list[pa.RecordBatch] = []
        self._count, self._since = 0, clock()

    @property
    def flushed(self) -> bool:
        """Whether everything that was appended is durable."""
        return not self._count

    def append(self, rows: RowsIn | Sequence[Mapping[str, Any]]) -> bool:
        """Take rows (a table, batch or list of dicts). True: they, and all before them, are durable. Raises SchemaError, RuleBroken."""
        if not self._count:
            self._since = self._clock()
        for batch in batches_in(rows, self.schema):
            self._waiting.append(batch)
            self._count += batch.num_rows
        if self._count >= self._rows_max or (self._count and self._clock() - self._since >= self._seconds):
            self.flush()
        return self.flushed

    def flush(self) -> Dataset | None:
        """Make a version of what waits; the newest version. Of two rows with one key the later one stays."""
        if not self._count:
            return self.dataset
        table = self._newest(pa.Table.from_batches(self._waiting, self.schema))
        message = f"append {len(table):,} rows"
        self.dataset = put_rows(self._store, self._name, self._branch, self.dataset, table, self._key, message)
        self._waiting, self._count = [], 0
        return self.dataset

    def _newest(self, table: pa.Table) -> pa.Table:
        keys = list(zip(*(table[one].to_pylist() for one in self._key), strict=True))
        last = {key: row for row, key in enumerate(keys)}
        return table if len(last) == len(keys) else table.take(pa.array(sorted(last.values())))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.flush()
