"""A Daft DataSink that stores rows where they are: cut into row groups, in packs of the worker's own, which it publishes itself.

    rows that follow each other -> GroupWriter -> a Run: its row groups, and whether rows are open after the last cut

A GroupWriter begins at a cut, so a run is what it is whatever came before; the caller makes one tree of all of them (stitch.py). A Run says
which rows it stands for, also where all of them were left out: what is missing can be done again, and what was done twice counts once.

In the caller's own process rows go to the caller's store, and nothing is flushed: it publishes all with its commit. Nor are Runs made a
column of objects there: for that, Daft imports torch and jax where they are installed, which takes seconds. On another worker `write`
returns when its rows are durable and the log lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import daft
import pyarrow as pa
import pyarrow.compute as pc
from daft.io.sink import DataSink, WriteResult
from daft.recordbatch import MicroPartition

from leptonstore.dataset.groups import GroupWriter
from leptonstore.dataset.keyed import keys_of
from leptonstore.dataset.values import Column, one_array
from leptonstore.process.engine.carrier import Carried
from leptonstore.process.engine.ended import working
from leptonstore.process.engine.failures import told
from leptonstore.process.engine.flow import MADE, row_ranges
from leptonstore.process.engine.stitch import Run
from leptonstore.process.engine.workers import Lent
from leptonstore.store import Store


class RowSink(DataSink[Run]):
    """Takes what `applied` gives. Pickles."""

    def __init__(self, lent: Lent, schema: pa.Schema, identity: Sequence[str], keyed: bool) -> None:
        self._lent, self._schema, self._identity, self._keyed = lent, schema, tuple(identity), keyed

    def name(self) -> str:
        """For people."""
        return "LeptonStore"

    def schema(self) -> daft.Schema:
        """Of what `finalize` gives."""
        return daft.Schema.from_pyarrow_schema(pa.schema([pa.field("rows", pa.int64())]))

    def write(self, micropartitions: Iterator[MicroPartition]) -> Iterator[WriteResult[Run]]:
        """Store them. Raises StoreFull, SchemaError."""
        for part in micropartitions:
            with working(self._lent.run), told(self._lent):
                store = self._lent.store()
                runs = list(self._runs(store, part.to_arrow()))
                if runs and not self._lent.here:
                    store.flush()
                    runs[0] = replace(runs[0], packs=self._lent.new_claims())
            for run in runs:
                if not self._lent.give(run):
                    yield WriteResult(run, 0, run.rows)

    def finalize(self, write_results: list[WriteResult[Run]]) -> MicroPartition:
        """How many rows there are. (The caller stitches what comes without this.)"""
        rows = sum(one.rows_written for one in write_results)
        return MicroPartition.from_arrow(pa.table({"rows": pa.array([rows], pa.int64())}))

    def _runs(self, store: Store, table: pa.Table) -> Iterator[Run]:
        carried = Carried(self._schema, MADE)
        for first, end, kept, findings in row_ranges(table):
            columns = carried.unpack([one_array(kept[name]) for name in carried.schema.names])
            yield self._run(store, first, end, columns, findings)
            self._lent.done(end - first)

    def _run(self, store: Store, first: int, end: int, columns: list[Column], findings: tuple[pa.Table, ...]) -> Run:
        rows = len(columns[0].values)
        keys = self._ends(columns) if self._keyed and rows else None
        writer = GroupWriter(store, self._schema, self._identity, keyed=keys is not None)
        writer.append(columns)
        groups, open_ = writer.take(), writer.open
        return Run(first, end, rows, (*groups, *writer.finish()), open_, keys, findings)

    def _ends(self, columns: list[Column]) -> tuple[bytes, bytes] | None:
        """The first and the last key, None when they do not ascend."""
        keys = keys_of(columns, self._schema, self._identity)
        if pc.all(pc.less(keys[:-1], keys[1:])).as_py() is False:
            return None
        return keys[0].as_py(), keys[-1].as_py()
