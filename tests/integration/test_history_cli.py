"""The history commands as people use them: what they print, their JSON, and their exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from command_line import ran, told

from leptonstore import errors
from leptonstore.cli.graph import graph_lines
from leptonstore.cli.group import lepton
from leptonstore.cli.runtime import EXIT_CODES
from leptonstore.store import Store
from tests.property.history_data import Row, commit_rows, small_trees

BASE = [Row(at, at % 3, f"row {at}") for at in range(30)]


@pytest.fixture(autouse=True)
def _used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    small_trees(monkeypatch)
    monkeypatch.setenv("LEPTON_STORE", store.url)


def edited(rows: list[Row], at: int, **values: object) -> list[Row]:
    return [row._replace(**values) if row.id == at else row for row in rows]  # type: ignore[arg-type]


def test_branch_tag_merge_log_and_show(store: Store) -> None:
    commit_rows(store, BASE, keyed=True, message="first")
    assert told("branch", "d@cleanup")["branch"] == "cleanup" and told("tag", "d@v1", "--from", "main")["tag"]
    ours = commit_rows(store, edited(BASE, 3, x=7), keyed=True, message="ours")
    theirs = commit_rows(store, edited(BASE, 9, text="nine"), "cleanup", keyed=True, message="theirs")
    assert [ref["branch"] for ref in told("branch", "d")["refs"]] == ["cleanup", "main"]
    assert [ref["branch"] for ref in told("tag")["refs"]] == ["v1"]
    assert "tag" in ran("ls").stdout and "no tag yet" in ran("tag", "--kind", "model").stdout
    merged = told("merge", "d@cleanup", "--into", "d", "-m", "together", "--author", "ada")
    assert (merged["how"], merged["changed"]) == ("merged", 1)
    versions = told("log", "d")["versions"]
    assert [one["message"] for one in versions] == ["together", "theirs", "ours", "first"]
    assert versions[0]["parents"] == [ours.commit, theirs.commit] and versions[0]["author"] == "ada"
    text = ran("log", "d").stdout
    assert "|\\" in text and "|/" in text and "ada" in text and "[d@v1 (tag)]" in text
    assert len(told("log", "d", "--limit", "2")["versions"]) == 2
    assert len(told("log", "d@v1", "--all")["versions"]) == 4
    shown = ran("show", "d").stdout
    for part in ("by ada on", "together", f"against {ours.commit[:12]}", "1 changed", "key        id", "text"):
        assert part in shown, shown
    body = told("show", "d@main~1")
    assert body["message"] == "ours" and body["changes"]["columns"] == {"x": 1} and body["keyed"]
    assert told("show", "d@v1")["changes"] is None
    assert told("restore", "d@v1")["how"] == "restored" and told("restore", "d@v1")["how"] == "nothing to do"
    assert told("revert", "d")["how"] == "reverted"
    assert "is removed" in ran("tag", "-d", "d@v1").stdout
    assert told("branch", "-d", "d@cleanup") == {"removed": "d@cleanup", "lost": []}


def test_diff_for_people_and_for_machines(store: Store) -> None:
    commit_rows(store, BASE)
    new = Row(100, None, "long " * 30, (1, 2))
    commit_rows(store, [*edited(BASE, 3, x=7)[1:], new])
    text = ran("diff", "d~1", "d").stdout.splitlines()
    assert text[0].startswith('- id=0    x=0  text="row 0"') and text[1] == "~ id=3    x: 0 -> 7"
    assert text[2].startswith("+ id=100  x=null  text=<150 B ") and text[2].endswith(">  tags=[1, 2]")
    assert text[3] == "1 rows added, 1 removed, 1 changed (30 -> 30)" and text[4].split() == ["x", "1", "rows"]
    assert ran("diff", "d").stdout.splitlines() == text, "one version: against the one before it"
    lines = [json.loads(line) for line in ran("diff", "d~1", "d", "--json").stdout.splitlines()]
    assert [line.get("kind") for line in lines] == ["removed", "changed", "added", None]
    assert lines[1] == {
        "kind": "changed", "key": {"id": 3}, "before": 3, "after": 2, "columns": ["x"], "old": {"x": 0}, "new": {"x": 7},
    }  # fmt: skip
    assert lines[2]["new"]["text"]["size"] == 150 and len(lines[2]["new"]["text"]["digest"]) == 64
    assert (lines[3]["added"], lines[3]["columns"]) == (1, {"x": 1})
    assert ran("diff", "d~1", "d", "--stat").stdout.splitlines() == text[3:]
    assert "… and 2 rows more" in ran("diff", "d~1", "d", "--limit", "1").stdout
    assert ran("diff", "d", "d").stdout == "no difference\n"
    assert (
        "\x1b[" not in ran("diff", "d").stdout
        and "\x1b[" in CliRunner().invoke(lepton, ["diff", "d"], color=True).output
    )


def test_conflicts_are_printed_with_what_each_version_has(store: Store) -> None:
    commit_rows(store, BASE, keyed=True)
    ran("branch", "d@side")
    commit_rows(store, edited(BASE, 3, x=7)[:-1], keyed=True)
    commit_rows(store, edited(edited(BASE, 3, x=8), 29, x=9), "side", keyed=True)
    result = ran("merge", "d@side", "--into", "d", fails=errors.MergeConflict)
    assert result.stdout.splitlines() == [
        "! id=29: removed by ours, changed by theirs",
        '    base    id=29  x=2  text="row 29"  tags=[]',
        "    ours    no such row",
        '    theirs  id=29  x=9  text="row 29"  tags=[]',
        "! id=3: changed by both",
        "    base    x=0",
        "    ours    x=7",
        "    theirs  x=8",
    ]
    lines = ran("merge", "d@side", "--json", fails=errors.MergeConflict).stdout.splitlines()
    assert json.loads(lines[1])["theirs"] == {"x": 8} and json.loads(lines[-1])["conflicts"] == 2
    assert "2 conflicts resolved" in ran("merge", "d@side", "--theirs").stdout
    assert next(code for kind, code in EXIT_CODES if issubclass(errors.MergeConflict, kind)) == 5


def test_mistakes_are_told(store: Store) -> None:
    commit_rows(store, BASE)
    for arguments, kind, said in (
        (["merge", "d", "--ours", "--theirs"], errors.BadInput, "exclude each other"),
        (["branch", "-d", "d"], errors.BadInput, "name the branch: NAME@BRANCH"),
        (["branch", "d@main~1"], errors.BadInput, "place in history"),
        (["branch", "e"], errors.RefMissing, "there is: d"),
        (["tag", "d@v1", "--from", "nope"], errors.RefMissing, "its refs: main"),
        (["diff", "d"], errors.RefMissing, "no version before it"),
        (["restore", "d~9"], errors.RefMissing, "is the first"),
        (["revert", "d"], errors.BadInput, "is the first version"),
    ):
        assert said in str(ran(*arguments, fails=kind).exception), arguments


def test_a_command_of_its_own_process_ends_with_a_code_and_one_line(store: Store, tmp_path: Path) -> None:
    commit_rows(store, BASE)
    code = "from leptonstore.cli import main; main()"
    for arguments, expected in ((["show", "d"], 0), (["merge", "d@x"], 3), (["checkout", "d", "out.parquet"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == expected and len(done.stderr.splitlines()) == bool(expected), done.stderr
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 30


def test_lines_part_and_meet_in_the_graph() -> None:
    versions = [("m", ("b", "c")), ("c", ("a",)), ("b", ("a",)), ("a", ())]
    assert list(graph_lines(versions)) == [("*", ["|\\"]), ("| *", []), ("* |", ["|/"]), ("*", [])]
    two = [("x", ("a",)), ("y", ("a",)), ("a", ())]
    assert [before for before, _ in graph_lines(two)] == ["*", "| *", "*"]


def test_lists_of_refs_are_aligned(store: Store) -> None:
    commit_rows(store, BASE, keyed=True)
    ran("branch", "d@a-branch-with-a-long-name")
    ran("tag", "d@v1")
    lines = ran("ls").stdout.splitlines()
    assert len(lines) == 3 and len({line.index(line.split()[2]) for line in lines}) == 1


def test_errors_name_a_few_of_many_names(store: Store) -> None:
    commit_rows(store, BASE, keyed=True)
    for at in range(30):
        ran("branch", f"d@b{at:02}")
    assert str(ran("branch", "-d", "d@nope", fails=errors.RefMissing).exception).endswith("b08, b09 and 21 more")


def test_a_reader_that_has_gone_is_no_failure(store: Store) -> None:
    """click would answer a broken pipe with exit code 1: `lepton log | head` fails a script under pipefail."""
    commit_rows(store, BASE, keyed=True)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        command = [sys.executable, "-c", "from leptonstore.cli.main import main; main()", "log", "d"]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_null_is_shown_as_in_a_condition(store: Store) -> None:
    commit_rows(store, BASE, keyed=True)
    ran("column", "add", "d", "note", "--value", "null", "--type", "string")
    ran("delete", "d", "--where", "id = 3 and note is null")
    assert "note=null" in ran("diff", "d").stdout
