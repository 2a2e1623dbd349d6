"""lepton clean, end to end: it reports without writing, does what it is told, and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli_edits import Shell

from leptonstore.dataset import Dataset, list_refs
from leptonstore.dataset.schema import class_label_field, text_field
from leptonstore.errors import BadInput, RefMissing, SchemaError
from leptonstore.process.findings import SCHEMA
from leptonstore.store import Store

pytest.importorskip("daft")

ACTIONS = [
    "--drop",
    "duplicates",
    "--drop",
    "check.leakage",
    "--tag",
    "outliers",
    "--check",
    "nulls",
    "--into",
    "clean",
]


@pytest.fixture
def sh(tmp_path: Path) -> Shell:
    """120 texts: row 100 repeats row 3 in test, 101 repeats 4 in train; row 7 has a wild number, row 9 a null text."""
    rows = 120
    texts: list[str | None] = [f"the text of row {row:03}, which says something" for row in range(rows)]
    texts[100], texts[101], texts[9] = texts[3], texts[4], None
    fields = [
        pa.field("id", pa.int64()),
        text_field("text"),
        class_label_field("label", ["a", "b"]),
        class_label_field("split", ["train", "test"]),
        pa.field("size", pa.float64()),
    ]
    sizes = [float(row % 10) for row in range(rows)]
    sizes[7] = 1e6
    columns: list[list[Any]] = [
        list(range(rows)), texts, [row % 2 for row in range(rows)], [int(row == 100) for row in range(rows)], sizes,
    ]  # fmt: skip
    arrays = [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), tmp_path / "d.parquet")
    shell = Shell(tmp_path)
    shell("import", str(tmp_path / "d.parquet"), "d", "--identity", "id")
    return shell


def versions(sh: Shell) -> list[tuple[str, str, str]]:
    with Store.open(sh.folder / "store") as store:
        return sorted((info.name, info.branch, info.commit) for info in list_refs(store, "dataset"))


def found(body: dict[str, Any]) -> dict[str, int]:
    return {one["check"]: one["found"] for one in body["checks"]}


@pytest.fixture
def texts(tmp_path: Path) -> Shell:
    """A table as JSON lines give it: three columns of strings, of which nothing says which one is the text."""
    shell = Shell(tmp_path)
    rows = [
        {"id": f"r{at}", "text": f"the text of row {at:03}, which says something", "label": "ab"[at % 2]}
        for at in range(40)
    ]
    rows[7]["text"] = "x"
    shell("import", shell.file("texts.jsonl", "\n".join(map(json.dumps, rows))), "texts")
    return shell


def test_what_was_not_searched_is_said_with_what_to_type(texts: Shell) -> None:
    said = texts("clean", "texts", "--check", "all")
    assert "nothing was found" not in said and "the checks that ran found nothing" in said
    assert "not searched: text_length, text_charset, near_duplicate_texts, text_quality, text_language\n" in said
    assert "several columns are texts (id, text, label)" in said and "not searched: rules (no column has a rule" in said
    settings = said.partition("the same with ")[2].partition("\n")[0].split()
    assert settings[1::2] == [
        f"{check}.column=text"
        for check in ("text_length", "text_charset", "near_duplicate_texts", "text_quality", "text_language")
    ]
    there = texts.json("clean", "texts", "--check", "all", *settings)
    assert {setting.partition(".")[0] for setting in settings[1::2]} <= set(found(there)) and found(there)[
        "text_length"
    ] == 1
    assert "several columns are texts" not in texts("clean", "texts", "--check", "all", *settings)


def test_quick_checks_that_lack_the_choice_of_a_column_are_said_too(texts: Shell) -> None:
    said = texts("clean", "texts")
    assert (
        "nothing was found" not in said
        and "the same with --set text_length.column=text --set text_charset.column=text\n" in said
    )
    assert "rules" not in said, "what is not there need not be said, unless all was asked for"
    texts("column", "cast", "texts", "text", "--semantic", "text")  # as it says
    assert "  from now on    lepton column cast texts@main text --semantic text\n" in said
    assert found(texts.json("clean", "texts"))["text_length"] == 1 and "not searched" not in texts("clean", "texts")
    assert "not searched: text_charset" not in texts("clean", "texts", "--drop", "duplicates", "--into", "clean")


def test_the_usual_bounds_stand_where_only_a_column_or_an_action_is_given(texts: Shell) -> None:
    column = ("--set", "text_length.column=text")
    assert found(texts.json("clean", "texts", "--check", "text_length", *column)) == {"text_length": 1}
    assert texts.json("clean", "texts", "--drop", "text_length", *column, "--into", "clean")["result"]["rows"] == 39
    assert found(texts.json("clean", "texts", "--check", "text_length", *column, "--set", "text_length.min=1")) == {
        "text_length": 0
    }


def test_without_an_action_nothing_is_written(sh: Shell) -> None:
    before = versions(sh)
    body = sh.json("clean", "d")
    counts = found(body)
    assert {name: counts[name] for name in ("nulls", "duplicates", "leakage", "outliers")} == {
        "nulls": 1, "duplicates": 1, "leakage": 1, "outliers": 1,
    }  # fmt: skip
    assert body["rows"] == 120 and body["rows_found"] == 4 and body["result"] is None
    worst = {one["check"]: one["worst"][0] for one in body["checks"] if one["worst"]}
    assert (worst["leakage"]["row"], worst["leakage"]["other"], worst["duplicates"]["row"]) == (3, 100, 101)
    assert "near_duplicate_texts" in body["not_searched"] and body["not_searched"]["near_duplicate_texts"] == ""
    assert versions(sh) == before
    text = sh("clean", "d", "--limit", "1")
    for said in ("120 rows", "repeats an earlier row", "4 of 120 rows have a finding; nothing was written",
                 "--drop duplicates", "--tag outliers", "lepton get d@main", "search more"):  # fmt: skip
        assert said in text
    assert "nothing was found" in sh("clean", "d", "--check", "labels_out_of_range")


def test_actions_write_a_version_and_the_parent_keeps_the_rows(sh: Shell) -> None:
    body = sh.json("clean", "d", *ACTIONS)
    made = body["result"]
    assert (made["branch"], made["rows"], made["written"]) == ("clean", 118, True)
    assert made["dropped"] == {"check.duplicates": 1, "check.leakage": 1}
    with Store.open(sh.folder / "store") as store:
        cleaned = Dataset.open(store, "d@clean")
        rows = cleaned.to_arrow(["id", "findings"]).to_pydict()
        assert 3 not in rows["id"] and 101 not in rows["id"] and 9 in rows["id"]
        assert [row for row, tags in zip(rows["id"], rows["findings"], strict=True) if tags == ["outliers"]] == [7]
        parent = cleaned.commit_object.parents[0].hex()
        assert len(Dataset.open(store, f"d@{parent}")) == 120 and parent == body["commit"]
        assert cleaned.commit_object.message == "clean: drop duplicates, leakage; tag outliers"
        findings = Dataset.open(store, "d.findings@clean").to_arrow(SCHEMA.names)
        said = dict(zip(findings["check"].to_pylist(), findings["action"].to_pylist(), strict=True))
        assert said == {"duplicates": "drop", "leakage": "drop", "outliers": "tag", "nulls": "keep"}
    again = sh.json("clean", "d", *ACTIONS)
    assert again["result"] == made | {"written": False} and found(again) == found(body)


def test_what_was_found_can_be_kept_for_a_report(sh: Shell) -> None:
    sh("clean", "d", *ACTIONS)
    body = sh.json("clean", "d", "--check", "outliers", "--save")
    assert body["saved"] == "d.findings@looked" and body["result"] is None
    with Store.open(sh.folder / "store") as store:
        kept = Dataset.open(store, "d.findings@looked")
        assert kept.to_arrow(["row", "check"]).to_pylist() == [{"row": 7, "check": "outliers"}]
        assert kept.commit_object.lineage["searched"]["commit"] == Dataset.open(store, "d").commit == body["commit"]
    assert "lepton report d@main" in sh("clean", "d", "--check", "outliers", "--save")
    # A run finds its own result again, not what somebody only looked at.
    assert found(sh.json("clean", "d", *ACTIONS)) == {"nulls": 1, "duplicates": 1, "leakage": 1, "outliers": 1}


def test_parameters_of_checks_are_set(sh: Shell) -> None:
    body = sh.json(
        "clean", "d", "--check", "outliers", "--set", "outliers.z_max=1", "--set", 'outliers.columns=["size"]'
    )
    assert found(body)["outliers"] > 1
    fixed = sh.json("clean", "d", "--fix", "nulls", "--set", 'nulls.fill={"text": "nothing"}', "--into", "filled")
    assert found(fixed) == {"nulls": 1}
    assert sh.rows("d@filled")["text"][9] == "nothing"
    elsewhere = sh.json("clean", "d", "--fix", "nulls", "--set", 'nulls.fill={"text": "nothing"}', "--into", "e@main")
    assert elsewhere["result"]["dataset"] == "e" and sh.rows("e") == sh.rows("d@filled")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["--check", "duplicate"], BadInput, "did you mean 'check.duplicates'"),
        (["--check", "rules"], SchemaError, "no column has a rule"),
        (["--drop", "nulls", "--tag", "nulls"], BadInput, "one action"),
        (["--fix", "duplicates"], BadInput, "no action 'fix'"),
        (["--set", "outliers=3"], BadInput, "CHECK.NAME=VALUE"),
        (["--check", "nulls", "--set", "outliers.z_max=3"], BadInput, "not searched for"),
        (["--check", "outliers", "--set", "outliers.z=3"], BadInput, "no parameter 'z'"),
        (["--set", "outlier.z=3"], BadInput, "no check 'outlier'"),
        (["--into", "x"], BadInput, "--drop, --tag or --fix"),
        (["--drop", "duplicates", "--save"], BadInput, "saves its findings anyway"),
    ],
)
def test_what_cannot_be_is_named_before_anything_runs(
    sh: Shell, arguments: list[str], error: type[Exception], said: str
) -> None:
    before = versions(sh)
    with pytest.raises(error, match=said):
        sh("clean", "d", *arguments)
    assert versions(sh) == before
    with pytest.raises(RefMissing):
        sh("clean", "nothing")


def test_help_imports_no_engine() -> None:
    code = (
        "import sys; from leptonstore.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "import json; print(json.dumps([m for m in ('daft', 'ray', 'sklearn', 'cleanlab', 'PIL') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "clean", "--help"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [] and "--drop CHECK" in done.stdout
