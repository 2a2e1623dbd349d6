"""What workers stored -> the one tree of these rows, the same as if one writer had met them one after another.

    runs, in row order    A A A a|B B B b|C C C c      a, b, c: rows that are open at the end of their run
    row groups            A A A a'  B'B B b'  C C c    from the end of a run, rows are cut again until an old cut comes out

A writer begins each run at a cut, and a cut depends on nothing but what lies between it and the cut before it. So where a cut falls on one
of a run's own, all that follows in that run stays. Mostly that is a row group or two later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from leptonstore.dataset.groups import GroupWriter, read_column
from leptonstore.dataset.keyed import sorted_rows
from leptonstore.dataset.tree import Tree, TreeWriter, put_levels
from leptonstore.dataset.values import Column
from leptonstore.errors import FormatDamaged
from leptonstore.format.node import Child, RowGroup, parse_node
from leptonstore.store import Store

RESULTS = "write_results"  # Daft's name of the column of results


@dataclass(frozen=True)
class Run:
    """What became of the rows [first, end) that were read: `rows` of them, in `groups`. open: whether the last group has no cut at its end.

    keys: of a keyed table, the encoded keys of the first and the last row; None when there are no rows, or they are not in the order of
    their keys (then `groups` know no keys). packs: that are claimed for it on the worker, of those that were not told of before.
    """

    first: int
    end: int
    rows: int
    groups: tuple[Child, ...]
    open: bool
    keys: tuple[bytes, bytes] | None
    findings: tuple[pa.Table, ...]
    packs: tuple[str, ...] = ()


def stitch(store: Store, schema: pa.Schema, identity: Sequence[str], keyed: bool, runs: Sequence[Run]) -> Tree:
    """Store the tree of the rows of all runs, which are in row order and without overlap.

    Raises DuplicateKey (of a keyed table), StoreFull, ChunkMissing, ChunkCorrupt.
    """
    runs = [run for run in runs if run.rows]
    if keyed and not _ascend(runs):
        writer = TreeWriter(store, schema, tuple(identity), keyed=True)
        stored = (_columns(store, schema, group) for run in runs for group in run.groups)
        for columns in sorted_rows(store, schema, identity, stored):
            writer.append_columns(columns)
        root, plain_bytes = writer.finish()
        return Tree(root, writer.rows, plain_bytes)
    return put_levels(store, list(_joined(store, schema, identity, keyed, runs)))


def _ascend(runs: Iterable[Run]) -> bool:
    """Whether the rows of all runs are in the order of their keys, each once."""
    keys = [run.keys for run in runs]
    if any(one is None for one in keys):
        return False
    return all(one[1] < other[0] for one, other in pairwise(keys) if one and other)


def _joined(
    store: Store, schema: pa.Schema, identity: Sequence[str], keyed: bool, runs: Sequence[Run]
) -> Iterator[Child]:
    writer = GroupWriter(store, schema, identity, keyed)
    for number, run in enumerate(runs):
        last = number == len(runs) - 1
        for at, group in enumerate(run.groups):
            ends_open = run.open and at == len(run.groups) - 1 and not last
            if not writer.open and not ends_open:
                yield group
                continue
            writer.append(_columns(store, schema, group))
            yield from writer.take()
    yield from writer.finish()


def _columns(store: Store, schema: pa.Schema, group: Child) -> list[Column]:
    """The rows of a group as its pages keep them."""
    node = parse_node(store.get(group.digest))
    if not isinstance(node, RowGroup) or len(node.columns) != len(schema):
        raise FormatDamaged(f"tree node {group.digest.hex()[:16]} is not the row group that a worker wrote")
    return [
        read_column(store, parts, field, 0, "rows that a worker wrote:")
        for field, parts in zip(schema, node.columns, strict=True)
    ]
