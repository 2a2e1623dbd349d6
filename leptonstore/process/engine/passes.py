"""A pass over the rows of a version: read, step, and what it gives comes to the caller (`rows_of`) or into the store (`write_rows`).

Each result says which rows it stands for. Until all rows are done, what is missing is given out again; what was done twice counts once. So
a worker that dies costs what it was at, and nothing is decided by who was faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import check_semantics
from leptonstore.dataset.tree import Tree
from leptonstore.errors import ClusterLost, SchemaError, listed
from leptonstore.format.keys import check_key
from leptonstore.format.page import fixed_width
from leptonstore.format.schema import schema_to_json
from leptonstore.process.engine.failures import received
from leptonstore.process.engine.jobs import Came, Job, Range, Result, came_schema
from leptonstore.process.engine.pieces import Step
from leptonstore.process.engine.runner import Lost, Runner
from leptonstore.process.engine.stitch import Run, stitch
from leptonstore.process.engine.workers import lend
from leptonstore.process.findings import joined

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Written:
    """tree: durable, and nothing refers to it yet. findings: of all rows, in row order (findings.SCHEMA)."""

    tree: Tree
    findings: pa.Table


def rows_of(
    ds: Dataset, step: Step, runner: Runner, progress: Progress = lambda rows: None
) -> tuple[pa.Table, pa.Table]:
    """What the step gives of all rows, in row order: "row" (int64), then step.schema with plain values; and the findings. All in memory.

    Rows are numbered as they stand in `ds`, a version or a view. progress: told the number of rows that are done.
    Raises MissingExtra, SchemaError, what the step raises, ChunkMissing, ChunkCorrupt, and ClusterLost when a cluster goes away.
    """
    done = [one for one in _all_rows(ds, step, runner, progress) if isinstance(one, Came)]
    table = pa.concat_tables([came_schema(step.schema).empty_table(), *(one.table for one in done)])
    return table, joined(found for one in done for found in one.findings)


def write_rows(
    ds: Dataset,
    step: Step,
    identity: tuple[str, ...],
    runner: Runner,
    progress: Progress = lambda rows: None,
    keyed: bool = False,
) -> Written:
    """Store what the step gives of all rows, as write_dataset would store the same rows. No ref is moved.

    identity: columns of step.schema; keyed: they are a key, and rows stand in its order. progress: as `rows_of`.
    What is written is durable and known to the log when this returns, and claimed until the store of `ds` publishes or is closed.
    Raises as `rows_of` does, StoreFull, and DuplicateKey of a keyed table.
    """
    check_table(step.schema, identity, keyed)
    store = ds.store

    runs = [one for one in _all_rows(ds, step, runner, progress, identity, keyed) if isinstance(one, Run)]
    tree = stitch(store, step.schema, identity, keyed, runs)
    store.flush()
    return Written(tree, joined(found for run in runs for found in run.findings))


def check_table(schema: pa.Schema, identity: Sequence[str], keyed: bool) -> None:
    """Raise SchemaError when no dataset can have this schema and identity."""
    schema_to_json(schema)
    check_semantics(schema)
    missing = [name for name in identity if name not in schema.names]
    if missing or not identity:
        raise SchemaError(f"identity columns {missing} are not in the schema; there are {listed(schema.names)}")
    if keyed:
        check_key(schema, tuple(identity))


class _Done(Protocol):
    """A result: of the rows [first, end) that were read."""

    @property
    def first(self) -> int: ...

    @property
    def end(self) -> int: ...


_D = TypeVar("_D", bound=_Done)


def _all_rows(
    ds: Dataset,
    step: Step,
    runner: Runner,
    progress: Progress,
    identity: tuple[str, ...] | None = None,
    keyed: bool = False,
) -> list[Result]:
    """The results of all rows, in row order and without overlap."""
    runner.require()
    from leptonstore.process.engine.source import ranges

    done: list[Result] = []
    made_bytes = sum(fixed_width(one.type) or 0 for one in step.schema)
    # What a step makes of large values is about as large as they are, and held until the task ends.
    large = getattr(step, "makes_values", False)
    whole = list(ranges(ds, step.reads, runner.parallel, referenced=large, made_bytes=made_bytes))
    with lend(ds.store, step, progress) as (lent, caller):
        unread = getattr(step, "unread", {}) if ds.selection is None else {}
        job = Job(ds, lent, pa.schema(ds.fields(step.reads)), step.schema, identity, keyed, unread)
        tries = 0  # since one brought something
        while todo := missing(whole, done):
            before, loss = len(done), ""
            try:
                for some in runner.results(job, step, todo):
                    for one in some:
                        ds.store.rely_on(one.packs if isinstance(one, Run) else ())
                    done += some
                    if not caller.rows:
                        progress(min(len(ds), sum(one.end - one.first for one in done)))
            except Lost as error:
                loss = str(error)
            except Exception as error:
                raise caller.failure or received(error) or error from None
            done = chosen([*done, *caller.take()])
            tries = tries + 1 if len(done) == before else 0
            if tries == limits.ENGINE_TRIES_MAX:
                first, end = todo[0]
                raise ClusterLost(
                    f"rows {first}-{end - 1} were lost {tries} times ({loss or 'without a word'}); run it again"
                )
    return done


def chosen(done: Sequence[_D]) -> list[_D]:
    """Results in row order, of those that overlap the first one."""
    out: list[_D] = []
    for one in sorted(done, key=lambda one: (one.first, -one.end)):
        if not out or one.first >= out[-1].end:
            out.append(one)
    return out


def missing(whole: Sequence[Range], done: Sequence[_Done]) -> list[Range]:
    """What of the ranges `whole`, which follow each other, no result stands for. done: in row order, without overlap."""
    out = []
    results = iter(done)
    current = next(results, None)
    for first, end in whole:
        at = first
        while current is not None and current.first < end:
            if current.first > at:
                out.append((at, current.first))
            at = max(at, min(current.end, end))
            if current.end > end:
                break
            current = next(results, None)
        if at < end:
            out.append((at, end))
    return out
