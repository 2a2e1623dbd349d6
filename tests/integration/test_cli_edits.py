"""The commands that edit a dataset, end to end: files in, a version out, one clear error for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, DuplicateKey, LeptonError, RefMissing, RuleBroken, SchemaError
from leptonstore.store import Store


class Shell:
    """Runs commands on one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self("init")

    def __call__(self, *arguments: str) -> str:
        store = [str(self.folder / "store")] if arguments[0] == "init" else []
        options = [] if arguments[0] == "init" else ["--store", str(self.folder / "store")]
        done = CliRunner().invoke(lepton, [*arguments, *store, *options], catch_exceptions=True)
        if isinstance(done.exception, LeptonError):
            raise done.exception
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        return done.output

    def json(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(*arguments, "--json").splitlines()[-1])
        return found

    def rows(self, name: str = "d") -> dict[str, list[Any]]:
        with Store.open(self.folder / "store") as store:
            columns: dict[str, list[Any]] = Dataset.open(store, name).to_arrow().to_pydict()
            return columns

    def file(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)


@pytest.fixture
def sh(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    shell("import", shell.file("d.csv", "id,name,n\n2,b,20\n1,a,10\n3,c,30\n"), "d", "--key", "id")
    return shell


def test_rows_from_files(sh: Shell) -> None:
    found = sh.json("append", "d", sh.file("more.csv", "n,id,name\n50,5,e\n"), "-m", "one more", "--author", "ada")
    assert found["rows"] == 4 and found["rows_before"] == 3 and found["changed"]
    pq.write_table(pa.table({"id": [3, 4], "name": ["C", "D"]}), sh.folder / "u.parquet")
    assert "upsert 2 rows; 5 rows" in sh("upsert", "d", str(sh.folder / "u.parquet"))
    sh("update", "d", sh.file("set.csv", "id,n\n4,44\n"))
    assert sh.rows() == {"id": [1, 2, 3, 4, 5], "name": ["a", "b", "C", "D", "e"], "n": [10, 20, None, 44, 50]}
    assert "(nothing changed)" in sh("upsert", "d", sh.file("same.csv", "id,name,n\n1,a,10\n"))
    log = sh.json("log", "d")["versions"]
    assert [one["message"] for one in log] == ["update 1 rows", "upsert 2 rows", "one more", "import of d.csv"]
    assert log[2]["lineage"]["source"]["files"][0]["name"] == "more.csv"


def test_rows_go_by_condition_key_and_number(sh: Shell) -> None:
    assert sh.json("delete", "d", "--where", "n > 15 and name like 'c%'")["rows"] == 2
    assert sh.json("delete", "d", "--keys", sh.file("gone.csv", "id\n1\n9\n"))["rows"] == 1
    assert sh.json("delete", "d", "--row", "0")["rows"] == 0


def test_columns(sh: Shell) -> None:
    sh("column", "add", "d", "kind", "--from", sh.file("k.csv", "kind\nx\ny\nx\n"))
    sh("column", "add", "d", "flag", "--value", "true")
    sh(
        "column",
        "add",
        "d",
        "twice",
        "--function",
        "tests.integration.test_cli_edits:doubled",
        "--columns",
        "n",
        "--type",
        "int32",
    )
    sh("column", "rename", "d", "kind", "sort")
    sh("column", "rewrite", "d", "n", "--value", "7")
    sh("column", "drop", "d", "flag")
    sh(
        "column",
        "cast",
        "d",
        "n",
        "--type",
        "uint8",
        "--semantic",
        "class_label",
        "--classes",
        "a,b,c,d,e,f,g,h",
        "--not-nullable",
    )
    assert sh.rows() == {
        "id": [1, 2, 3],
        "name": ["a", "b", "c"],
        "n": [7, 7, 7],
        "sort": ["x", "y", "x"],
        "twice": [20, 40, 60],
    }
    with Store.open(sh.folder / "store") as store:
        schema = Dataset.open(store, "d").schema
    assert schema.field("twice").type == pa.int32()
    assert schema.field("n").type == pa.uint8() and not schema.field("n").nullable
    assert sh.json("delete", "d", "--where", "n = 'h'")["rows"] == 0


def doubled(batch: pa.RecordBatch) -> list[int]:
    """What `--function` names in a test."""
    return [2 * one for one in batch["n"].to_pylist()]


def test_rules(sh: Shell) -> None:
    assert "has no rules" in sh("rules", "ls", "d")
    sh("rules", "add", "d", "n", "--min", "0", "--max", "99", "--not-null")
    sh("rules", "add", "d", "name", "--pattern", "[a-z]", "--unique")
    assert "n: range min 0 max 99" in sh("rules", "ls", "d")
    with pytest.raises(
        RuleBroken, match=r"column 'n' breaks the rule 'range min 0 max 99' in row 1 \(the first is 100\)"
    ):
        sh("append", "d", sh.file("x.csv", "id,name,n\n7,x,1\n8,y,100\n"))
    with pytest.raises(RuleBroken, match="'name' breaks the rule 'unique'"):
        sh("append", "d", sh.file("x.csv", "id,name,n\n7,a,1\n"))
    sh("rules", "rm", "d", "n", "range", "not_null")
    rules = [(one["column"], one["rule"]) for one in sh.json("rules", "ls", "d")["rules"]]
    assert rules == [("name", "pattern"), ("name", "unique")]


def test_mistakes(sh: Shell) -> None:
    for arguments, error, text in (
        (("append", "d", sh.file("dup.csv", "id,name,n\n1,z,1\n")), DuplicateKey, "id=1 already"),
        (("append", "d", sh.file("bad.csv", "id,name,n\nx,z,1\n")), SchemaError, "'id' is int64"),
        (("append", "nope", sh.file("ok.csv", "id\n9\n")), RefMissing, "no dataset 'nope'"),
        (("delete", "d"), BadInput, "say which rows"),
        (("delete", "d", "--where", "n ="), BadInput, "cannot read the condition"),
        (("column", "drop", "d", "id"), SchemaError, "identifies the rows"),
        (("column", "add", "d", "x"), BadInput, "say where the values come from"),
        (("column", "cast", "d", "n", "--type", "int3"), BadInput, "no type 'int3'"),
        (("rules", "add", "d", "n"), BadInput, "say which rule"),
        (("import", str(sh.folder / "d.csv"), "e", "--key", "id", "--identity", "n"), BadInput, "not both"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            sh(*arguments)
    assert sh.rows() == {"id": [1, 2, 3], "name": ["a", "b", "c"], "n": [10, 20, 30]}


def test_identity_keeps_the_order_of_rows(sh: Shell) -> None:
    sh("import", str(sh.folder / "d.csv"), "e", "--identity", "id")
    assert sh.rows("e")["id"] == [2, 1, 3]
    sh("append", "e", sh.file("more.csv", "id,name,n\n0,z,0\n"))
    assert sh.rows("e")["id"] == [2, 1, 3, 0]
    with pytest.raises(BadInput, match="has no key, which upsert needs"):
        sh("upsert", "e", str(sh.folder / "more.csv"))


@pytest.mark.parametrize("group", ["column", "rules"])
def test_every_subcommand_has_help_with_an_example_and_json(group: str) -> None:
    shown = CliRunner().invoke(lepton, [group, "--help"]).output
    names = [line.split()[0] for line in shown.split("Commands:")[1].splitlines() if line.strip()]
    for name in names:
        output = CliRunner().invoke(lepton, [group, name, "--help"]).output
        assert "Example:" in output and "--json" in output, name
    assert len(names) >= 3


def test_what_is_said_of_bad_arguments_is_about_the_arguments(sh: Shell) -> None:
    """No class of a parser, and one wording of types, whichever command reads them."""
    with pytest.raises(BadInput, match=r"something is missing.*Line 1") as told:
        sh("delete", "d", "--where", "n >")
    assert "class" not in str(told.value)
    for command in (
        ["import", sh.file("x.csv", "a\n1\n"), "x", "--type", "a=whole"],
        ["column", "cast", "d", "n", "--type", "whole"],
    ):
        with pytest.raises(BadInput, match="no type 'whole'; say int32"):
            sh(*command)
    with pytest.raises(BadInput, match="COLUMN=TYPE"):
        sh("import", sh.file("x.csv", "a\n1\n"), "x", "--type", "int32")
    for command in (["head", "d", "--column", "z"], ["column", "drop", "d", "z"]):
        with pytest.raises(SchemaError, match=r"d@main has no column 'z'; it has id, name, n$"):
            sh(*command)
    assert "no remote yet" in sh("remote", "ls")


def test_one_language_of_conditions_for_commands_and_filters(sh: Shell) -> None:
    with Store.open(sh.folder / "store") as store:
        ds = Dataset.open(store, "d")
        assert ds.filter("n > 10 and name <> 'c'").to_arrow(["id"]).column(0).to_pylist() == [2]
        assert ds.to_arrow(["id"], filter="n = 30").num_rows == 1
        with pytest.raises(SchemaError, match="no column 'z'"):
            ds.filter("z > 1")


def test_paths_of_files_are_shown_as_text(sh: Shell) -> None:
    (sh.folder / "tree").mkdir()
    sh.file("tree/notes.md", "#")
    sh("import", str(sh.folder / "tree"), "tree", "--format", "files")
    assert "notes.md" in sh("head", "tree")


def test_an_import_that_loses_the_key_says_so(tmp_path: Path) -> None:
    """It was silent, and only `upsert` told, long after."""
    shell = Shell(tmp_path)
    table = shell.file("t.csv", "id,x\n2,b\n1,a\n")
    assert "had a key" not in shell("import", table, "d", "--key", "id") + shell("import", table, "d", "--key", "id")
    assert "d had a key and has none now" in shell("import", table, "d", "--identity", "id")
    assert "had a key" not in shell("import", table, "d", "--identity", "id")
