"""What a pass asks of a runner: a plan for Daft of some ranges of rows, and what its parts tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from leptonstore.dataset import Dataset
from leptonstore.dataset.values import one_array
from leptonstore.process.engine.carrier import Carried
from leptonstore.process.engine.flow import MADE, ROW, row_ranges
from leptonstore.process.engine.stitch import RESULTS, Run
from leptonstore.process.engine.workers import Lent

Range = tuple[int, int]


@dataclass(frozen=True)
class Came:
    """What the step gave of the rows [first, end) that were read: "row", then its columns."""

    first: int
    end: int
    table: pa.Table
    findings: tuple[pa.Table, ...]


Result = Run | Came


@dataclass(frozen=True)
class Job:
    """Pickles. read: the columns that are read. schema: of the step. identity: by which rows are stored; None: they come to the caller.

    unread: as steps say it; none of a view, whose rows are anywhere.
    """

    ds: Dataset
    lent: Lent
    read: pa.Schema
    schema: pa.Schema
    identity: tuple[str, ...] | None = None
    keyed: bool = False
    unread: Mapping[str, bytes] = field(default_factory=dict)

    def plan(self, todo: Sequence[Range]) -> Any:
        """Daft's plan for these rows."""
        from leptonstore.process.engine.apply import ReadBy, applied
        from leptonstore.process.engine.sink import RowSink
        from leptonstore.process.engine.source import VersionSource

        frame = VersionSource(self.ds, self.lent, self.read, todo, self.unread).read()
        read_by = ReadBy(self.ds, self.read, self.unread) if self.unread else ReadBy(None, self.read, {})
        made = applied(frame, self.schema, read_by, self.lent, plain=self.identity is None)._builder
        if self.identity is None:
            return made
        sink = RowSink(self.lent, self.schema, self.identity, self.keyed)
        return made.write_datasink(sink.name(), sink)

    def results(self, part: Any) -> list[Result]:
        """Those of a part (a micropartition) of what the plan gives."""
        if self.identity is not None:
            return [one.result for one in part.to_pydict()[RESULTS]]
        carried, schema = Carried(self.schema, MADE), came_schema(self.schema)
        out: list[Result] = []
        for first, end, kept, findings in row_ranges(part.to_arrow()):
            columns = carried.unpack([one_array(kept[name]) for name in carried.schema.names])
            arrays = [one_array(kept[ROW]), *(column.values for column in columns)]
            out.append(Came(first, end, pa.Table.from_arrays(arrays, schema=schema), findings))
        return out


def came_schema(schema: pa.Schema) -> pa.Schema:
    """Of the tables of Came, for a step with `schema`."""
    return pa.schema([pa.field(ROW, pa.int64(), nullable=False), *schema])
