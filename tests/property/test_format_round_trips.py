"""Any table that is exported and imported again is the table that it was, semantic types included."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_strategies import FLAT, NESTED, NUMBERS, TENSORS, TIMES, Rows, canonical, tables

from leptonstore import limits
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.errors import BadInput

MANY = settings(
    max_examples=60,
    deadline=datetime.timedelta(seconds=60),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
ALL = st.one_of(NESTED, st.sampled_from(TENSORS))


def imported(path: Path, **options: Any) -> pa.Table:
    source = open_source(path, **options)
    batches = list(source.batches())
    assert all(batch.schema.equals(source.schema, check_metadata=True) for batch in batches)
    if source.rows is not None:
        assert source.rows == sum(batch.num_rows for batch in batches)
    return pa.Table.from_batches(batches, source.schema)


def comes_back(table: pa.Table, name: str, format: str, batch_rows: int, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dest = Path(folder) / name
        report = export_dataset(Rows(table, batch_rows), dest, format)
        assert report.rows == table.num_rows
        found = imported(dest, **options)
        assert found.schema.equals(table.schema, check_metadata=True)
        assert canonical(found) == canonical(table)


BATCHES = st.integers(1, 7)


@MANY
@given(tables(ALL), BATCHES)
def test_arrow_ipc(table: pa.Table, batch_rows: int) -> None:
    comes_back(table, "t.arrow", "arrow", batch_rows)
    comes_back(table, "t.arrows", "arrow", batch_rows)


@MANY
@given(tables(ALL), BATCHES)
def test_webdataset(table: pa.Table, batch_rows: int) -> None:
    comes_back(table, "t", "webdataset", batch_rows)


@MANY
@given(tables(ALL, nulls=False), BATCHES)
def test_mds(table: pa.Table, batch_rows: int) -> None:
    comes_back(table, "t", "mds", batch_rows)


@MANY
@given(tables(ALL), BATCHES)
def test_huggingface(table: pa.Table, batch_rows: int) -> None:
    comes_back(table, "t", "huggingface", batch_rows)


@MANY
@given(tables(st.sampled_from([*NUMBERS, *TIMES, *TENSORS]), nulls=False, semantics=False), BATCHES)
def test_arrays(table: pa.Table, batch_rows: int) -> None:
    comes_back(table, "t.npz", "npz", batch_rows)
    comes_back(table, "t.safetensors", "safetensors", batch_rows)


@MANY
@given(tables(ALL, semantics=False), BATCHES)
def test_json_lines_with_the_types_named(table: pa.Table, batch_rows: int) -> None:
    if not table.num_rows:
        return  # a file without a line says nothing, and is refused
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    comes_back(table, "t.jsonl", "jsonl", batch_rows, types=types)
    comes_back(table, "t.jsonl.gz", "jsonl", batch_rows, types=types)


@MANY
@given(
    st.sampled_from(["webdataset", "mds", "huggingface"]),
    tables(st.sampled_from(FLAT), nulls=False, rows_max=12),
    st.integers(0, 4),
)
def test_an_interrupted_export_goes_on_and_gives_the_same_files(format: str, table: pa.Table, after: int) -> None:
    """Interrupted after any shard: nothing half is there under its name, and the rest is all that is written again."""

    class Interrupted(Exception):
        pass

    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "EXPORT_SHARD_BYTES", 2_500)
        patch.setattr(limits, "EXPORT_ARROW_SHARD_BYTES", 1)
        whole, dest = Path(folder) / "whole", Path(folder) / "dest"
        export_dataset(Rows(table, 2, "v1"), whole, format)
        calls = 0

        def progress(rows: int) -> None:
            nonlocal calls
            calls += 1
            if calls > after + 1:
                raise Interrupted

        try:
            export_dataset(Rows(table, 2, "v1"), dest, format, progress)
        except Interrupted:
            there = files(dest)
            assert not any(name.endswith((".partial", "index.json", "state.json")) for name in there)
            for name, data in there.items():
                assert name == ".lepton-export.json" or files(whole)[name] == data
            if there:
                with pytest.raises(BadInput, match="not empty"):
                    export_dataset(Rows(table, 2, "v2"), dest, format)  # another version is not mixed in
            kept = {name: (dest / name).stat().st_mtime_ns for name in there if not name.startswith(".")}
            export_dataset(Rows(table, 2, "v1"), dest, format)
            assert {name: (dest / name).stat().st_mtime_ns for name in kept} == kept
        assert files(dest) == files(whole)
