"""Workload operations: what transforming operations cost a row, beside what a user would call without them, on values in memory.

join       1,000,000 rows look 200,000 others up by an integer, two columns of them      pyarrow's Table.join of the same tables
group_by   1,000,000 rows in 100 groups: count, a mean, a deviation, a sum, a maximum    DuckDB on the same Arrow table, one thread
tokenise   4 MB of Python's own source in texts of 1,000 characters, 8,000 tokens        the library alone: encode_batch_fast, .ids
split      the side of 200,000 rows, by an integer and by a path                         -
prepare    70,000 images of 28 x 28 with a split, the direct stream                      Pipeline.run of the same operation, memo off

One process, batches of 4,000 rows as pipelines make them (tokenise: 1,000); the best of RUNS. An operation binds before the clock starts.
Contract: tokenise <= 1.15 of the library's time; prepare no slower than the pipeline.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.harness import Figure
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import class_label_field, tensor_field, text_field
from leptonstore.process.identity import identity_numbers
from leptonstore.process.operation import Operation, RowOperation
from leptonstore.process.operations.group_by import GroupBy
from leptonstore.process.operations.join import Join
from leptonstore.process.operations.rows import Split
from leptonstore.process.operations.tokenise import Tokenise, train_tokenizer
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.preprocess import prepare
from leptonstore.store import Store

ROWS, ROWS_QUICK = 1_000_000, 20_000
IMAGES, IMAGES_QUICK = 70_000, 2_000
TEXT_BYTES, TEXT_BYTES_QUICK = 4_000_000, 200_000
VOCABULARY, VOCABULARY_QUICK = 8_000, 1_000
BATCH, TEXTS_BATCH = 4_000, 1_000
GROUPS, RUNS = 100, 3


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of RUNS."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def stored(store: Store, name: str, table: pa.Table) -> Dataset:
    """As a dataset that its first column identifies."""
    source = Source(
        table.schema, (table.schema.names[0],), lambda: iter(table.to_batches(max_chunksize=8_000)), len(table)
    )
    return write_dataset(store, name, source)


def applied(operation: Operation, table: pa.Table, rows: int = BATCH) -> list[Any]:
    """What it makes, batch by batch."""
    assert isinstance(operation, RowOperation)
    names = operation.reads(table.schema)
    return [operation.apply(batch.select(names)) for batch in table.to_batches(max_chunksize=rows)]


def joins(store: Store, rows: int) -> Figure:
    """See above."""
    rng = np.random.default_rng(0)
    ids, count = rng.permutation(rows), rows // 5
    other = pa.table(
        {
            "id": rng.permutation(rows)[:count],
            "weight": rng.random(count),
            "name": [f"name {at}" for at in range(count)],
        }
    )
    here = pa.table({"id": ids})
    stored(store, "other", other)
    operation = Join("other", ["id"]).bound(stored(store, "here", here.slice(0, BATCH)), here.schema)
    mine = best(lambda: applied(operation, here))
    peer = best(lambda: here.join(other, "id", use_threads=False))
    return Figure("rows.join", 1e6 * mine / rows, "us/row", peer="pyarrow's join", peer_value=1e6 * peer / rows)


def groups(rows: int) -> Figure:
    """See above."""
    import duckdb

    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "g": rng.integers(0, GROUPS, rows),
            "x": rng.normal(size=rows),
            "y": rng.random(rows),
            "i": rng.integers(0, 999, rows),
        }
    )
    operation = GroupBy(["g"], ["count", "mean(x)", "std(y)", "sum(i)", "max(x)"])
    connection = duckdb.connect(":memory:", config={"threads": "1"})
    connection.register("t", table)
    statement = "select g, count(*), avg(x), stddev_pop(y), sum(i), max(x) from t group by g order by g"

    def work() -> pa.Table:
        partials = [
            operation.partial(batch.select(["g", "x", "y", "i"])) for batch in table.to_batches(max_chunksize=BATCH)
        ]
        return operation.result(pa.Table.from_batches(partials))

    found, expected = work(), connection.sql(statement).to_arrow_table()
    for mine, theirs in zip(found.columns, expected.columns, strict=True):
        assert np.allclose(
            mine.to_numpy(), theirs.cast(pa.float64()).to_numpy(), rtol=1e-9
        )  # DuckDB sums integers as decimals
    peer = best(lambda: connection.sql(statement).to_arrow_table())
    return Figure("rows.group_by", 1e6 * best(work) / rows, "us/row", peer="DuckDB", peer_value=1e6 * peer / rows)


def tokens(store: Store, folder: Path, size: int, vocabulary: int) -> Figure:
    """See above."""
    from tokenizers import Tokenizer

    texts: list[str] = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        whole = file.read_text(errors="replace")
        texts += [whole[at : at + 1_000] for at in range(0, len(whole), 1_000)]
        if 1_000 * len(texts) >= size:
            break
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), text_field("text")])
    table = pa.Table.from_arrays([pa.array(range(len(texts))), pa.array(texts)], schema=schema)
    ds = stored(store, "texts", table)
    file = folder / "tokenizer.json"
    file.write_text(train_tokenizer(ds, "text", vocabulary))
    operation, library = Tokenise("text", str(file)).bound(ds, ds.schema), Tokenizer.from_file(str(file))

    def alone() -> None:
        for batch in table.to_batches(max_chunksize=TEXTS_BATCH):
            for one in library.encode_batch_fast(batch.column(1).to_pylist(), add_special_tokens=False):
                _ = one.ids

    mine, peer = best(lambda: applied(operation, table, TEXTS_BATCH)), best(alone)
    megabytes = sum(map(len, texts)) / 1e6
    return Figure(
        "text.tokenise", 1e3 * mine / megabytes, "ms/MB", "<= 1.15", "the library alone", 1e3 * peer / megabytes
    )


def splits(rows: int) -> list[Figure]:
    """See above."""
    ids = pa.array(np.random.default_rng(0).permutation(rows))
    paths = pa.array([f"images/train/{at:08}.jpg" for at in range(rows)])
    kinds = {"integers": ids, "paths": paths}
    return [
        Figure(f"rows.split by {name}", 1e6 * best(lambda values=values: identity_numbers([values])) / rows, "us/row")  # type: ignore[misc]
        for name, values in kinds.items()
    ]


def prepared(folder: Path, count: int) -> Figure:
    """See above. Each in a store of its own, for what is there already is not stored twice."""
    rng = np.random.default_rng(0)
    pixels = (rng.random((count, 28, 28)) < 0.2) * rng.integers(0, 256, (count, 28, 28), np.uint8)
    fields: Sequence[pa.Field] = [
        pa.field("id", pa.int64(), nullable=False),
        tensor_field("image", pa.uint8(), (28, 28), "image"),
        class_label_field("label", [str(at) for at in range(10)]),
    ]
    columns = [
        pa.array(range(count)),
        tensor_column(fields[1], pixels),
        pa.array((np.arange(count) % 10).astype(np.uint8)),
    ]
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    times: dict[str, list[float]] = {"prepare": [], "pipeline": []}
    for run in range(RUNS + 1):  # the first one imports the engine
        roots = []
        for name, seconds in times.items():
            with Store.create(folder / f"{name}-{run}") as store:
                ds = stored(store, "d", table)
                began = time.perf_counter()
                if name == "prepare":
                    made = prepare(store, ds, branch="made")
                else:
                    made = Pipeline("d", [Split()], into="d@made").run(store, memo=False).dataset
                seconds.append(time.perf_counter() - began)
                roots.append(made.commit_object.root)
        assert roots[0] == roots[1]
    mine, peer = (min(times[name][1:]) for name in ("prepare", "pipeline"))
    return Figure("prepare", 1e3 * mine, "ms", "<= 1.05", "Pipeline.run", 1e3 * peer)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures."""
    quick = arguments.quick
    rows = ROWS_QUICK if quick else ROWS
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as place:
        folder = Path(place)
        with Store.create(folder / "store") as store:
            size, vocabulary = (TEXT_BYTES_QUICK, VOCABULARY_QUICK) if quick else (TEXT_BYTES, VOCABULARY)
            figures = [joins(store, rows), groups(rows), tokens(store, folder, size, vocabulary), *splits(rows // 5)]
        return [*figures, prepared(folder, IMAGES_QUICK if quick else IMAGES)]
