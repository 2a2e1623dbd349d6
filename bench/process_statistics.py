"""Workload statistics: 5,000,000 rows x 10 columns (integers, floats with nulls and NaN, strings of few and of many values, booleans,
times).

Ours reads a compressed store, DuckDB a Parquet file of the same columns (snappy, row groups of 122,880 rows, as DuckDB writes them); two
threads each, a process of its own each time (imports not counted, opening is), both from the page cache, in turn.

DuckDB    one query: of each column count, nulls, min, max and approx_count_distinct, approx_top_k of 20; of numbers avg, stddev_pop and
          approx_quantile at the seven shares that ours tells, of floats over the finite values, whose rest is counted; of texts min,
          max, avg and
          stddev_pop of the lengths. Then one query for the histograms of 32 equal bins, whose ends the first one has told.
ours      all of that; and the quantiles of times and lengths, and the correlations of all pairs of the seven number columns, which
          DuckDB is not asked for. `cold`: nothing is kept, and what is made is kept. `warm`: again. `appended`: after 1 % of the rows
          was appended.

Contract: cold <= 3x DuckDB. What is exact equals DuckDB's (count, nulls, min, max, frequent labels and flags; mean to 1e-12, deviation
to 1e-9, relative); sketches are within their stated errors of DuckDB's exact answers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import harness
from bench.harness import Figure, in_process, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

ROWS, QUICK_ROWS = 5_000_000, 500_000
RUNS, THREADS = 3, 2
MODULE = "bench.process_statistics"  # by its name: run as a program it is __main__
SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
FLOATS, INTEGERS, TEXTS = ("price", "score", "ratio"), ("id", "small", "wide"), ("label", "user")
COLUMNS = (*INTEGERS, *FLOATS, *TEXTS, "flag", "moment")


def samples(rows: int, first: int = 0, seed: int = 0) -> pa.Table:
    """Rows `first`, `first` + 1, … of the table."""
    rng = np.random.default_rng(seed)

    def some(values: np.ndarray[Any, Any], share: float) -> pa.Array:
        return pa.array(values, mask=rng.random(rows) < share)

    price = rng.lognormal(3, 1, rows)
    price[rng.random(rows) < 0.01] = np.nan
    labels = pa.array([f"label-{number:03}" for number in range(200)])
    label = pa.DictionaryArray.from_arrays(
        pa.array(np.minimum(rng.geometric(0.05, rows) - 1, 199).astype(np.int32)), labels
    )
    users = [
        np.char.add("user-", part.astype("U"))
        for part in np.array_split(rng.integers(0, 2**62, rows), -(-rows // 100_000))
    ]
    moment = 1_700_000_000_000_000 + 1_000_000 * first + np.cumsum(rng.integers(0, 2_000_000, rows))
    return pa.table(
        {
            "id": np.arange(first, first + rows),
            "small": rng.integers(0, 100, rows).astype(np.int32),
            "wide": some(rng.integers(-(2**40), 2**40, rows), 0.05),
            "price": some(price, 0.02),
            "score": rng.normal(100, 15, rows).astype(np.float32),
            "ratio": rng.random(rows),
            "label": label.cast(pa.string()),
            "user": pa.concat_arrays([pa.array(part) for part in users]),
            "flag": some(rng.random(rows) < 0.3, 0.01),
            "moment": pa.array(moment, pa.timestamp("us")),
        }
    )


# -- DuckDB ----------------------------------------------------------------------------------------------------------


def aggregates(name: str) -> dict[str, str]:
    """What DuckDB computes of a column in the first query, by name."""
    found = {
        "count": f"count({name})",
        "nulls": f"count(*) - count({name})",
        "distinct": f"approx_count_distinct({name})",
        "top": f"approx_top_k({name}, 20)",
    }
    only = f" filter (isfinite({name}))" if name in FLOATS else ""
    found |= {"min": f"min({name}){only}", "max": f"max({name}){only}"}
    if name in FLOATS:
        found["finite"] = f"count({name}){only}"
    if name in FLOATS or name in INTEGERS:
        found |= {
            "mean": f"avg({name}::double){only}",
            "std": f"stddev_pop({name}::double){only}",
            "quantiles": f"approx_quantile({name}, {list(SHARES)}){only}",
        }
    if name in TEXTS:
        length = f"strlen({name})"
        found |= {
            "shortest": f"min({length})",
            "longest": f"max({length})",
            "length": f"avg({length})",
            "length_std": f"stddev_pop({length})",
        }
    return found


def duckdbs(file: str) -> dict[str, Any]:
    """In a process of its own: seconds, and what came out."""
    import duckdb

    began, cpu = time.perf_counter(), time.process_time()
    connection = duckdb.connect()
    connection.execute(f"set threads = {THREADS}")
    wanted = [(name, what, query) for name in COLUMNS for what, query in aggregates(name).items()]
    (values,) = connection.execute(f"select {', '.join(query for *_, query in wanted)} from '{file}'").fetchall()
    found: dict[str, dict[str, Any]] = {name: {} for name in COLUMNS}
    for (name, what, _), value in zip(wanted, values, strict=True):
        found[name][what] = value
    bins = []
    for name in (*FLOATS, *INTEGERS):
        low, high = float(found[name]["min"]), float(found[name]["max"])
        edges = [low + (high - low) * at / 32 for at in range(1, 32)] + [high]
        only = f" filter (isfinite({name}))" if name in FLOATS else ""
        bins.append(f"histogram({name}::double, {edges}){only}")
    connection.execute(f"select {', '.join(bins)} from '{file}'").fetchall()
    seconds, spent = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": seconds, "cpu_s": spent, "found": found}


def exact_answers(file: str, found: dict[str, Any]) -> dict[str, Any]:
    """DuckDB's exact answers to what ours tells from sketches: shares below and above each quantile, different values, labels."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"set threads = {THREADS}")
    answers: dict[str, Any] = {"ranks": {}, "distinct": {}}
    for column in found["columns"]:
        name = column["name"]
        ((answers["distinct"][name],),) = connection.execute(f"select count(distinct {name}) from '{file}'").fetchall()
        if name not in FLOATS and name not in INTEGERS:
            continue
        kind = "double" if name in FLOATS else "bigint"
        where = f"isfinite({name})" if name in FLOATS else f"{name} is not null"
        parts = [
            f"avg(({name} {sign} {one['value']!r}::{kind})::int)"
            for one in column["numeric"]["quantiles"]
            for sign in ("<", "<=")
        ]
        (answers["ranks"][name],) = connection.execute(
            f"select {', '.join(parts)} from '{file}' where {where}"
        ).fetchall()
    for name in ("label", "flag"):
        rows = connection.execute(
            f"select {name}::varchar, count(*) from '{file}' where {name} is not null group by 1 order by 2 desc, 1 limit 20"
        ).fetchall()
        answers[name] = [list(row) for row in rows]
    return answers


# -- ours ------------------------------------------------------------------------------------------------------------


def ours(place: str, keep: bool = True) -> dict[str, Any]:
    """In a process of its own: seconds, blocks that were found again, and what came out."""
    from leptonstore.process.analyse import analyse

    began, cpu = time.perf_counter(), time.process_time()
    with Store.open(place) as store:
        found = analyse(Dataset.open(store, "samples"), threads=THREADS, keep=keep)
        took = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
        return {**took, "blocks": found.blocks, "reused": found.reused, "found": found.to_json()}


def differences(found: dict[str, Any], duckdb: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """How far ours is from DuckDB. Raises AssertionError where what is exact is not equal, or a sketch beyond its stated error."""
    worst = {"mean": 0.0, "std": 0.0, "rank": 0.0, "rank_stated": 0.0, "distinct": 0.0}
    for column in found["columns"]:
        name, theirs, numeric = column["name"], duckdb[column["name"]], column["numeric"]
        assert column["nulls"] == theirs["nulls"] and column["rows"] - column["nulls"] == theirs["count"], name
        different, error = exact["distinct"][name], column["cardinality"]["error"]
        off = abs(column["cardinality"]["count"] - different - (name == "price")) / different  # NaN is counted apart
        assert off <= 4 * error, (name, off)
        worst["distinct"] = max(worst["distinct"], off)
        if name in TEXTS:
            lengths = column["lengths"]
            assert (column["least"], column["greatest"]) == (theirs["min"], theirs["max"]), name
            assert (lengths["min"], lengths["max"]) == (theirs["shortest"], theirs["longest"]), name
            pairs = ((lengths["mean"], theirs["length"]), (lengths["std"], theirs["length_std"]))
        elif name in FLOATS or name in INTEGERS:
            assert (numeric["min"], numeric["max"]) == (theirs["min"], theirs["max"]), name
            assert numeric["count"] == theirs.get("finite", theirs["count"]), name
            pairs = ((numeric["mean"], theirs["mean"]), (numeric["std"], theirs["std"]))
            ranks = exact["ranks"][name]
            for share, low, high in zip(SHARES, ranks[::2], ranks[1::2], strict=True):
                off = max(low - share, share - high, 0.0)
                assert off <= numeric["rank_error"] + 1e-12, (name, share, off)
                worst["rank"] = max(worst["rank"], off)
            worst["rank_stated"] = max(worst["rank_stated"], numeric["rank_error"])
        else:
            continue
        for which, (mine, other) in zip(("mean", "std"), pairs, strict=True):
            worst[which] = max(worst[which], abs(mine - other) / abs(other) if other else abs(mine))
    for name in ("label", "flag"):
        top = next(column["top"] for column in found["columns"] if column["name"] == name)
        assert top["error"] == 0 and [[one["value"], one["rows"]] for one in top["values"]] == exact[name], name
    return worst


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures."""
    rows = QUICK_ROWS if arguments.quick else ROWS
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        make(place, rows)
        file, home = str(place / "samples.parquet"), str(place / "store")
        cold, theirs = [], []
        for _ in range(1 if arguments.quick else RUNS):  # in turn: a slow spell of the machine meets all
            theirs.append(in_process(MODULE, "duckdb", file))
            clear_kept(home)
            cold.append(in_process(MODULE, "ours", home))
        assert all(run["reused"] == 0 for run in cold)
        exact = in_process(MODULE, "exact", file, json.dumps({"columns": cold[0]["found"]["columns"]}))
        worst = differences(cold[0]["found"], theirs[0]["found"], exact)
        warm = in_process(MODULE, "ours", home)
        assert warm["reused"] == warm["blocks"] and warm["found"]["columns"] == cold[0]["found"]["columns"]
        with Store.open(place / "store") as store:
            Dataset.open(store, "samples").append(samples(rows // 100, first=rows, seed=1))
        appended = in_process(MODULE, "ours", home)
    seconds = median(run["seconds"] for run in cold)
    duckdb = median(run["seconds"] for run in theirs)
    spent, theirs_spent = (median(run["cpu_s"] for run in runs) for runs in (cold, theirs))
    return [
        Figure("statistics cold", seconds, "s", "<= 3", "DuckDB, from Parquet", duckdb),
        Figure("statistics cold, processor time", spent, "s", "", "DuckDB, from Parquet", theirs_spent),
        Figure("statistics warm", warm["seconds"], "s"),
        Figure("statistics +1 % rows", appended["seconds"], "s"),
        Figure("statistics new blocks", appended["blocks"] - appended["reused"], f"of {appended['blocks']}"),
        Figure("statistics peak memory", max(run["peak_mib"] for run in cold), "MiB"),
        Figure("mean off by", worst["mean"], "relative", "<= 1e-12"),
        Figure("deviation off by", worst["std"], "relative", "<= 1e-9"),
        Figure("ranks off by", worst["rank"], "of the rows", f"<= {worst['rank_stated']:.6f}"),
        Figure("distinct off by", worst["distinct"], "relative", f"<= {4 * 1.04 / math.sqrt(4096):.4f}"),
    ]


def make(place: Path, rows: int) -> None:
    """The same rows as a Parquet file and as a dataset."""
    table = samples(rows)
    pq.write_table(table, place / "samples.parquet", row_group_size=122_880)
    batches = table.to_batches(max_chunksize=65_536)
    with Store.create(place / "store") as store:
        write_dataset(store, "samples", Source(table.schema, ("id",), lambda: iter(batches), rows))


def clear_kept(home: str) -> None:
    """Forget all sketches."""
    from leptonstore.process.memo import Memo

    with Store.open(home) as store:
        memo = Memo.of(store)
        assert memo is not None
        memo.clear()


def main() -> None:
    """What `in_process` runs."""
    role, *rest = sys.argv[1:]
    pa.array([0])  # its first array imports pandas, where that is installed: 0.3 s
    if role == "ours":
        import leptonstore.process.analyse  # noqa: F401  (imports are not what is timed)

        result = ours(rest[0])
    elif role == "duckdb":
        result = duckdbs(rest[0])
    else:
        result = exact_answers(rest[0], json.loads(rest[1]))
    print(json.dumps({**result, "peak_mib": harness.peak_mib()}, default=str))


if __name__ == "__main__":
    main()
