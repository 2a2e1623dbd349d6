"""SQL over datasets: what it finds, what it reads, and what it cannot reach."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, Source, sql, write_dataset
from leptonstore.dataset.schema import class_label_field
from leptonstore.errors import BadInput, ChunkCorrupt, MissingExtra, RefMissing, SchemaError
from leptonstore.store import Store

pytest.importorskip("duckdb")
Make = Callable[..., Source]
LEPTON = [sys.executable, "-c", "from leptonstore.cli import main; main()"]
ROWS = 20_000


def _table(rows: int = ROWS) -> pa.Table:
    fields = [
        pa.field("id", pa.int64()),
        class_label_field("label", ["cat", "dog"]),
        pa.field("half", pa.float16()),
        pa.field("blob", pa.large_binary()),
    ]
    ids = np.arange(rows)
    columns = [ids, (ids % 2).astype(np.uint8), ids.astype(np.float16), [b"x" * (at % 5) for at in range(rows)]]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)], pa.schema(fields)
    )


@pytest.fixture
def full(store: Store, source_of: Make) -> Store:
    write_dataset(store, "d", source_of(_table(), ("id",)))
    write_dataset(store, "d", source_of(_table(100), ("id",)), branch="small", parents=())
    return store


def test_datasets_are_tables(full: Store) -> None:
    found = sql.query(full, "select count(*) n, sum(id) s from d where label = 1 and id < 10")
    assert found.to_pylist() == [{"n": 5, "s": 25}]
    rest = sql.query(full, 'select count(*) n from d where id not in (select id from "d@small")')
    assert rest.to_pylist() == [{"n": ROWS - 100}]
    assert sql.query(full, "select max(id) m from d", ["d@small"]).to_pylist() == [{"m": 99}]
    assert sql.query(full, "with d as (select 1 as one) select * from d").to_pylist() == [{"one": 1}]
    assert sql.query(full, "select count(*) n from d where half between 10 and 12").to_pylist() == [{"n": 3}]
    assert sql.query(full, 'select sum(octet_length(blob)) n from "d@small"').to_pylist() == [{"n": 200}]


def test_a_query_reads_the_pages_that_it_needs(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Dataset] = []
    original = Dataset.open
    monkeypatch.setattr(Dataset, "open", lambda *arguments: (opened.append(original(*arguments)), opened[-1])[1])
    assert sql.query(full, "select label from d where id = 15000").num_rows == 1
    assert opened[0].pages.reads == 2, "a page of `id`, a page of `label`"


def test_a_query_cannot_reach_anything_else(full: Store, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    outside = pa.table({"a": [1]})  # a Python variable that DuckDB would find
    assert outside.num_rows
    for statement in (
        f"select * from '{tmp_path}/t.csv'",
        f"select * from read_csv('{tmp_path}/t.csv')",
        f"select * from read_text('{tmp_path}/t.csv')",
        f"select * from glob('{tmp_path}/*')",
        f"copy (select 1) to '{tmp_path}/out.csv'",
        f"attach '{tmp_path}/x.db'",
        f"export database '{tmp_path}/x'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access=true",
        "create table x as select 1",
        "select 1; select 2",
        "",
        "select * from outside",
        f"select * from 'lepton://{full.url}/d@main/data/*.parquet'",
    ):
        with pytest.raises(BadInput):
            sql.query(full, statement)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "t.csv"]


def test_mistakes_are_named(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for statement, message in [
        ("select * from nope", "Table with name nope does not exist.*datasets here: d; "),
        ("select * from d.findings", 'names with a dot, .* stand in double quotes: "NAME@REF"'),
        ("select * from d@main", 'near "@"; .* stand in double quotes: "NAME@REF"'),
        ("selec 1", 'syntax error at or near "selec"'),
        ("select nope from d", "nope"),
        ("select id from d where label = 'cat'", "Could not convert"),
    ]:
        with pytest.raises(BadInput, match=message):
            sql.query(full, statement)
    with pytest.raises(RefMissing):
        sql.query(full, "select 1", ["nope"])
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtra, match=r"leptonstore\[sql\]"):
        sql.query(full, "select 1")


def test_damage_keeps_its_name(full: Store) -> None:
    dataset = Dataset.open(full, "d")
    place = full.locate(dataset.leaves.group(1).columns[0][0].digest)
    assert place is not None
    path = full.home.path_of(place.pack)  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[place.row.offset + 100] ^= 1
    path.write_bytes(data)
    with Store.open(full.url) as fresh, pytest.raises(ChunkCorrupt, match=r"d@main rows \d+-\d+ column 'id'"):
        sql.query(fresh, "select sum(id) from d")


def _lepton(*arguments: str, store: Store) -> str:
    done = CliRunner().invoke(lepton, [arguments[0], "--store", store.url, *arguments[1:]], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_prints_tables_json_csv_and_parquet(full: Store, tmp_path: Path) -> None:
    lines = _lepton("sql", "select id, blob from d order by id", store=full).splitlines()
    assert lines[0].split() == ["id", "blob"] and len(lines) == 53 and "more rows" in lines[-1]
    value = json.loads(_lepton("sql", "d@small", "select id, blob from d where id < 3", "--json", store=full))
    assert value == {"columns": ["id", "blob"], "rows": [[0, ""], [1, "78"], [2, "7878"]], "more": False}
    text = _lepton("sql", "select id, 'a,b' t from d", "--csv", "--limit", "2", store=full)
    assert text.splitlines() == ['"id","t"', '0,"a,b"', '1,"a,b"']
    out = tmp_path / "out.parquet"
    assert "20,000 rows" in _lepton("sql", "select * from d", "--parquet", str(out), store=full)
    assert pq.read_table(out).column("id").to_pylist() == list(range(ROWS))
    assert "Scan" in _lepton("sql", "explain select id from d", store=full)
    with pytest.raises(BadInput, match="choose one of"):
        _lepton("sql", "select 1", "--csv", "--json", store=full)


def test_ctrl_c_ends_a_query(full: Store) -> None:
    slow = "select count(*) from range(10000000) a, range(10000000) b where a.range * b.range = -1"
    command = [*LEPTON, "sql", "--store", full.url, slow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            # It works when it has used up two seconds of CPU: no clock decides.
            while sum(map(int, Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[11:13])) < 150:
                assert running.poll() is None
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=30)
        finally:
            running.kill()
    assert running.returncode == 130 and "interrupted" in said


def test_head_prints_the_first_rows(full: Store) -> None:
    lines = _lepton("head", "d", "-n", "2", store=full).splitlines()
    assert lines[0].split() == ["id", "label", "half", "blob"]
    assert lines[3].split() == ["1", "1", "dog", "1", "1", "bytes"] and lines[-1] == "… 19,998 more rows"
    value = json.loads(_lepton("head", "d@small", "--column", "id", "--json", "-n", "3", store=full))
    assert value["rows"] == [{"id": 0}, {"id": 1}, {"id": 2}] and value["total"] == 100
    with pytest.raises(SchemaError, match="no column 'nope'"):
        _lepton("head", "d", "--column", "nope", store=full)
