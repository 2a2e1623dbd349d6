"""What commands print of values and names: one JSON for all of them, and a name that is not there is told."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli_edits import Shell

from leptonstore.cli.runtime import emit
from leptonstore.dataset.schema import tensor_field
from leptonstore.errors import RefMissing

NAN, INF = float("nan"), float("inf")
FIELDS = [
    pa.field("id", pa.int64()), pa.field("x", pa.float64()), pa.field("half", pa.float16()), pa.field("data", pa.binary()),
    pa.field("list", pa.list_(pa.float32())), pa.field("struct", pa.struct([("x", pa.float64()), ("data", pa.binary())])),
    pa.field("when", pa.timestamp("us")), pa.field("price", pa.decimal128(5, 2)),
]  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"id": 1, "x": NAN, "half": np.float16(INF), "data": b"\xff\x00x", "list": [1.0, NAN], "struct": {"x": -INF, "data": b"\x01"},
     "when": datetime.datetime(2026, 1, 2, 3), "price": decimal.Decimal("1.50")},
    {"id": 2, "x": INF, "half": np.float16(1.5), "data": b"y" * 500, "list": [], "struct": None, "when": None, "price": None},
]  # fmt: skip
PRINTED: list[dict[str, Any]] = [
    {"id": 1, "x": "nan", "half": "inf", "data": "ff0078", "list": [1.0, "nan"], "struct": {"x": "-inf", "data": "01"},
     "when": "2026-01-02 03:00:00", "price": "1.50", "tensor": [["nan", 1.0]]},
    {"id": 2, "x": "inf", "half": 1.5, "data": "79" * 500, "list": [], "struct": None, "when": None, "price": None,
     "tensor": [[0.0, "inf"]]},
]  # fmt: skip


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def last(output: str) -> Any:
    return json.loads(output.splitlines()[-1], parse_constant=refuse)


@pytest.fixture
def sh(tmp_path: Path) -> Shell:
    rows = pa.Table.from_pylist(ROWS, pa.schema(FIELDS))
    field = tensor_field("tensor", pa.float32(), (1, 2))
    tensors = pa.FixedSizeListArray.from_arrays(pa.array([NAN, 1.0, 0.0, INF], pa.float32()), 2)
    rows = rows.append_column(field, pa.ExtensionArray.from_storage(field.type, tensors))
    pq.write_table(rows, tmp_path / "t.parquet")
    shell = Shell(tmp_path)
    shell("import", str(tmp_path / "t.parquet"), "birds", "--identity", "id")
    return shell


def test_a_value_is_the_same_json_in_every_command(sh: Shell) -> None:
    assert [last(sh("get", "birds", str(row), "--json")) for row in (0, 1)] == PRINTED
    assert last(sh("get", "birds", "0", "--column", "x", "--json")) == {"x": "nan"}
    assert last(sh("head", "birds", "--json"))["rows"] == PRINTED
    names = [name for name in PRINTED[0] if name != "tensor"]
    queried = last(sh("sql", f"select {', '.join(map(json.dumps, names))} from birds order by id", "--json"))
    assert queried["rows"] == [[row[name] for name in names] for row in PRINTED]


def test_a_changed_value_is_the_same_json_too(sh: Shell) -> None:
    sh("delete", "birds", "--row", "0")
    line = json.loads(sh("diff", "birds", "--json").splitlines()[0], parse_constant=refuse)
    expected = {name: value for name, value in PRINTED[0].items() if name != "tensor"}
    assert {name: line["old"][name] for name in expected} == expected


def test_people_see_bytes_by_their_number(sh: Shell) -> None:
    assert sh("get", "birds", "1", "--column", "data") == f"data: 500 bytes: {'79' * 64}…\n"


def test_whatever_a_command_prints_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"loss": NAN, "array": np.array([INF, 1]), "one": np.float32(0.5), "path": Path("x")}, True, "")
    assert last(capsys.readouterr().out) == {"loss": "nan", "array": ["inf", 1.0], "one": 0.5, "path": "x"}


def test_ls_tells_a_name_that_is_not_there(sh: Shell) -> None:
    with pytest.raises(
        RefMissing, match=r"no dataset, checkpoint or model 'brids' in .*; there is: birds; did you mean 'birds'\?"
    ):
        sh("ls", "brids")
    with pytest.raises(RefMissing, match=r"there is: birds$"):
        sh("ls", "nosuch", "--json")
    with pytest.raises(RefMissing, match=r"no model 'birds' .*; there is: none yet; 'birds' is a dataset"):
        sh("ls", "birds", "--kind", "model")
    assert [ref["name"] for ref in sh.json("ls", "birds")["refs"]] == ["birds"]
    assert sh.json("ls", "--kind", "model")["refs"] == [] and sh("ls", "--kind", "model") == "no model yet\n"


def test_ls_of_an_empty_store_is_no_error(tmp_path: Path) -> None:
    sh = Shell(tmp_path)
    assert "nothing here yet" in sh("ls") and "nothing here yet" in sh("ls", "--kind", "model")
    assert sh.json("ls")["refs"] == []


def test_an_import_says_what_the_source_notes(sh: Shell) -> None:
    said = sh("import", sh.file("semi.csv", "id;name\n1;a\n"), "semi")
    assert "lepton: warning: " in said and "import it with --delimiter ';'" in said
    assert "warning" not in sh("import", str(sh.folder / "semi.csv"), "semi", "--delimiter", ";")
    assert sh.rows("semi") == {"id": [1], "name": ["a"]}
    assert "row #4 (the header is #1) has 'oops'" in sh("import", sh.file("x.csv", "x,y\n1,1\n2,2\n3,oops\n"), "x")
