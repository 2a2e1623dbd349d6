"""The report of a dataset version: what is gathered for it, which findings are taken, and what the command says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from process_data import encode, encoded_table, noise, tensor_table, write

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.lineage import lineage
from leptonstore.dataset.schema import text_field
from leptonstore.process import gallery
from leptonstore.process.clean import apply_clean, find
from leptonstore.process.clusters import marked, pick_clusters
from leptonstore.process.findings import findings_table, joined
from leptonstore.process.images import decode
from leptonstore.process.report import Report, history, render
from leptonstore.process.report_dataset import dataset_report, findings_about, parent_of
from leptonstore.process.report_graph import BOX_HEIGHT, BOX_WIDTH, graphs
from leptonstore.store import Store


def findings_of(store: Store, ds: Dataset, table: pa.Table, branch: str = "main") -> Dataset:
    """Findings about `ds`, as a run of a pipeline writes them."""
    told = {"operation": "findings", "searched": {"name": ds.name, "commit": ds.commit}}
    source = Source(table.schema, ("row",), lambda: iter(table.to_batches()), len(table), told)
    return write_dataset(store, f"{ds.name}.findings", source, branch=branch)


def digits(store: Store, rows: int = 120) -> Dataset:
    labels = np.arange(rows) % 3
    return write(store, "d", tensor_table(noise(rows, 8, 8), labels, ["a", "b", "c"]), ["id"])


# -- findings ----------------------------------------------------------------------------------------------------------


def test_the_newest_findings_about_this_version_are_taken(store: Store) -> None:
    ds = digits(store)
    assert findings_about(ds) is None
    findings_of(store, ds, findings_table("outliers", "x", [1], ["first"]))
    findings_of(store, ds, findings_table("outliers", "x", [2, 3], ["second"] * 2))
    found = findings_about(Dataset.open(store, "d"))
    assert found is not None and found.ds.commit == ds.commit
    assert found.report.findings["row"].to_pylist() == [2, 3] and found.report.rows == 120


def test_findings_about_a_version_before_are_shown_as_such(store: Store) -> None:
    raw = digits(store)
    findings_of(store, raw, findings_table("constant", "image", [5], ["every pixel is 0"]))
    cleaned = write(store, "d", tensor_table(noise(50, 8, 8), [0] * 50, ["a"]), ["id"])
    assert cleaned.commit_object.parents[0].hex() == raw.commit
    page = dataset_report(cleaned)
    assert page.clean is not None and page.clean.commit == raw.commit and page.findings[0].row == 5
    assert np.array_equal(page.findings[0].image, raw[5]["image"]), (
        "pictures are those of the version that was searched"
    )
    assert raw.commit[:12] in page.notes[0]
    findings_of(store, cleaned, findings_table("constant", "image", [], []), "other")
    nearer = findings_about(cleaned)
    assert nearer is not None and nearer.ds.commit == cleaned.commit and len(nearer.report.findings) == 0


def test_a_dataset_that_only_has_the_name_is_no_table_of_findings(store: Store) -> None:
    ds = digits(store)
    table = pa.table({"row": [1], "x": ["mine"]})
    source = Source(
        table.schema, ("row",), lambda: iter(table.to_batches()), 1, {"searched": {"name": "d", "commit": ds.commit}}
    )
    write_dataset(store, "d.findings", source)
    assert findings_about(ds) is None
    assert "--check" in dataset_report(ds).notes[0]


def test_a_check_searches_now(store: Store) -> None:
    images = noise(40, 8, 8)
    images[7] = images[4]
    ds = write(store, "d", tensor_table(images, [0] * 40, ["a"]), ["id"])
    page = dataset_report(ds, check=True)
    assert page.clean is not None and page.clean.counts() == {"duplicates": 1} and page.notes == []
    assert [[one.row for one in group.samples] for group in page.clusters] == [[4, 7]]


# -- what is picked ----------------------------------------------------------------------------------------------------


def test_groups_are_connected_rows_and_every_check_has_its_turn(store: Store) -> None:
    ds = digits(store)
    found = joined(
        [
            findings_table("near", "image", [10, 11, 30], ["x"] * 3, others=[9, 10, 29]),
            findings_table("same", "image", [50, 51, 52], ["y"] * 3, groups=[50, 50, 50]),
            findings_table("alone", "image", [70], ["z"]),
        ]
    )
    report = find(ds)
    report = type(report)(ds.name, ds.commit, ds.fingerprint, len(ds), found)
    groups, total = pick_clusters(ds, report)
    assert total == 3 and [(one.check, [s.row for s in one.samples]) for one in groups] == [
        ("near", [9, 10, 11]), ("near", [29, 30]), ("same", [50, 51, 52]),
    ]  # fmt: skip
    assert [one.caption for one in groups[0].samples] == ["", "x", "x"]
    few, total = pick_clusters(ds, report, count=2, each=2)
    assert total == 3 and [(one.check, one.rows, len(one.samples)) for one in few] == [("near", 3, 2), ("same", 3, 2)]


def test_the_worst_of_a_check_come_first(store: Store) -> None:
    ds = digits(store)
    table = findings_table("outliers", "id", range(20), ["far"] * 20, [None if at == 3 else at for at in range(20)])
    report = type(find(ds))(ds.name, ds.commit, ds.fingerprint, len(ds), table)
    assert [one.row for one in gallery.finding_samples(ds, report, 4)] == [19, 18, 17, 16]
    twice = joined([table, findings_table("outliers", "label", [17, 19], ["odd"] * 2, [99.0, 100.0])])
    report = type(report)(ds.name, ds.commit, ds.fingerprint, len(ds), twice)
    found = gallery.finding_samples(ds, report, 3)
    assert [(one.row, one.caption) for one in found] == [(19, "odd"), (17, "odd"), (18, "id: far")]


@pytest.mark.parametrize(
    ("first", "other"),
    [("a b c", "a x c"), ("", "new"), ("same", "same"), ("a  b", "a b"), ("x" * 9_000, "y " * 9_000)],
)
def test_marked_pieces_are_the_text(first: str, other: str) -> None:
    pieces = marked(first, other)
    assert "".join(text for text, _ in pieces) == other
    if first == other:
        assert not any(mark for _, mark in pieces)


def test_text_columns_are_told_from_codes(store: Store) -> None:
    long = [f"a sentence that somebody has written, number {at}" for at in range(30)]
    codes = [f"c{at}" for at in range(30)]
    ds = write(store, "t", pa.table({"id": range(30), "code": codes, "said": long}), ["id"])
    assert gallery.text_column(ds) == "said" and [one.text for one in gallery.pick_texts(ds, 2)] == [long[7], long[22]]
    assert gallery.text_column(write(store, "c", pa.table({"id": range(30), "code": codes}), ["id"])) is None
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("said", pa.string()), text_field("meant")])
    told = write(store, "m", pa.table([range(30), long, codes], schema=schema), ["id"])
    assert gallery.text_column(told) == "meant", "what the schema says goes first"


def test_photographs_are_shrunk_as_they_are_read(store: Store) -> None:
    large = np.kron(noise(1, 30, 40, 3)[0], np.ones((20, 20, 1), np.uint8))
    files = [encode(large, "JPEG", quality=90), encode(large), encode(large.mean(2).astype(np.uint8), "JPEG")]
    ds = write(store, "d", encoded_table(files, [0] * 3, ["a"]), ["path"])
    for sample, data in zip(gallery.sample_rows(ds, [0, 1, 2]), files, strict=True):
        assert sample.image is not None and sample.image.shape[:2] == (120, 160)
        whole = gallery.images.shrink(decode(data), 160).astype(int)
        assert np.abs(sample.image.astype(int) - whole).mean() < 6, "looks the same"
    assert gallery.thumbnail(decode(files[0]), 160).uri.startswith("data:image/jpeg")


def test_rows_of_a_table_are_told_in_a_line(store: Store) -> None:
    ds = write(store, "t", pa.table({"id": range(5), "x": [0.5, None, 1, 2, 3]}), ["id"])
    assert [one.text for one in gallery.sample_rows(ds, [0, 1])] == ["id 0, x 0.5", "id 1, x -"]
    page = dataset_report(ds)
    assert page.rows is not None and page.rows.names == ["id", "x"] and page.rows.rows[1] == ["1", "-"]


# -- lineage -----------------------------------------------------------------------------------------------------------


def test_the_picture_of_the_lineage_has_a_box_for_each_version_and_none_overlap(store: Store) -> None:
    raw = digits(store)
    images = noise(120, 8, 8)
    images[7] = images[4]
    ds = write(store, "d", tensor_table(images, [0] * 120, ["a"]), ["id"])
    cleaned = apply_clean(store, ds, find(ds), branch="clean")
    links, more = lineage(store, "d@clean", "dataset")
    for graph in graphs(links, more):
        names = [box.title for box in graph.boxes]
        assert len(names) == len(links) and cleaned.commit[:12] in names[0] and raw.commit[:12] in " ".join(names)
        corners = [(box.x, box.y) for box in graph.boxes]
        for at, (x, y) in enumerate(corners):
            assert 0 <= x <= graph.width - BOX_WIDTH and 0 <= y <= graph.height - BOX_HEIGHT
            assert all(abs(x - a) >= BOX_WIDTH or abs(y - b) >= BOX_HEIGHT for a, b in corners[:at])
        assert len(graph.paths) == sum(len(link.origins) for link in links)
    links, more = lineage(store, "d@clean", "dataset", 1)
    assert more == 1 and "1 earlier" in [line for box in graphs(links, more)[0].boxes for line in box.lines]


def test_forgotten_history_ends_the_lineage_and_the_comparison(store: Store) -> None:
    """`history` opened the parent of a version whose history was forgotten, and the report failed."""
    digits(store)
    ds = write(store, "d", tensor_table(noise(9, 8, 8), [0] * 9, ["a"]), ["id"])
    assert parent_of(ds) is not None
    assert forget_all_but(store, "dataset", "d", 1).forgotten == 1
    with Store.open(store.url) as again:
        ds = Dataset.open(again, "d")
        assert parent_of(ds) is None and len(history(ds)) == 1
        assert "Lineage" in render(dataset_report(ds))


def test_sizes_say_what_is_shared_with_the_version_before(store: Store) -> None:
    table = tensor_table(noise(20_000, 4, 4), [0] * 20_000, ["a"])
    write(store, "d", table.slice(0, 19_900), ["id"])
    page = dataset_report(write(store, "d", table, ["id"]))
    assert page.sizes is not None and page.sizes.other.startswith("d@")
    assert 0 < page.sizes.own_bytes < page.sizes.stored_bytes
    assert page.analysis is not None and page.analysis.drift is not None and page.analysis.drift.rows == 19_900


# -- the command -------------------------------------------------------------------------------------------------------


def lepton(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from leptonstore.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_the_file_and_says_what_it_found(store: Store, tmp_path: Path) -> None:
    ds = digits(store)
    done = lepton("report", "d", "--store", store.url, "--out", tmp_path / "r.html", "--check", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["commit"] == ds.commit and told["bytes"] == (tmp_path / "r.html").stat().st_size
    assert told["findings"] == {} and told["rows"] == 120
    assert render(dataset_report(ds, check=True)) == (tmp_path / "r.html").read_text(), (
        "the same version, the same bytes"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["report", "nothing"], 3, "nothing"),
        (["report", "d", "--vs", "d@nowhere"], 3, "nowhere"),
        (["report", "d", "--out", "."], 2, "is a directory"),
        (["report", "d", "--out", "no/such/place.html"], 1, "no/such"),
    ],
)
def test_what_is_wrong_is_named(store: Store, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    digits(store)
    done = lepton(*arguments, "--store", store.url)
    assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1


def test_an_empty_dataset_has_a_report(store: Store) -> None:
    ds = write(store, "e", tensor_table(noise(3, 8, 8), [0] * 3, ["a"]).slice(0, 0), ["id"])
    html = render(dataset_report(ds, check=True))
    assert "No finding in 0 rows" in html


def test_a_report_says_when_it_was_not_searched() -> None:
    assert "not searched" in render(Report("t", notes=["It was not searched."]))


def test_findings_of_a_pipeline_are_shown_with_the_rows_that_it_searched(store: Store) -> None:
    from leptonstore.process.pipeline import Pipeline
    from leptonstore.process.registry import operation_named

    images = noise(300, 8, 8)
    images[[70, 80]] = images[7]
    raw = write(store, "d", tensor_table(images, [0] * 300, ["a"]), ["id"])
    checks = [operation_named("check.duplicates", {"action": "drop"}), operation_named("check.nulls", {})]
    made = Pipeline("d", checks, into="d@clean").run(store).dataset
    found = findings_about(made)
    assert found is not None and found.ds.commit == raw.commit and found.report.checks == ("duplicates", "nulls")
    assert found.report.findings["row"].to_pylist() == [70, 80] and len(made) == 298
    for sample in gallery.finding_samples(found.ds, found.report):
        assert np.array_equal(sample.image, images[7]), (
            "the rows of the version that was read, not of the one that was made"
        )


def test_other_names_of_the_version_and_what_identifies_its_rows_are_told(store: Store) -> None:
    from leptonstore.dataset.branches import create_ref

    ds = digits(store)
    create_ref(store, "dataset", "d", "v1", ds.commit, tag=True)
    html = render(dataset_report(ds))
    assert "also d@v1" in html and "int64, identifies rows" in html


def test_hostile_columns_classes_texts_findings_and_messages_stay_text(store: Store) -> None:
    from test_report import HOSTILE, Page, assert_harmless

    evil = [text.replace("\ud800", "?").replace("\x00", "") for text in HOSTILE]
    rows = 60
    fields = [pa.field(f"{text[:200]} {at}", pa.float64()) for at, text in enumerate(evil)]
    schema = pa.schema([pa.field("id", pa.int64(), False), text_field("said"), *fields])
    rng = np.random.default_rng(0)
    said = [f"{evil[at % len(evil)]} and more words, so that this is text" for at in range(rows)]
    columns = [range(rows), said, *(rng.normal(at, 1, rows) for at in range(len(fields)))]
    table = pa.table(columns, schema=schema)
    for part in (table.slice(0, 30), table):
        lineage = {"operation": evil[0], "files": [{"name": evil[1], "bytes": 3}], evil[2]: {"x": evil}}
        source = Source(schema, ("id",), lambda part=part: iter(part.to_batches()), len(part), lineage)  # type: ignore[misc]
        ds = write_dataset(store, "t", source, message=evil[3])
    found = joined(
        [findings_table(text, text, [at, 20 + at], [text] * 2, others=[40, 40]) for at, text in enumerate(evil)]
    )
    findings_of(store, ds, found)
    page = dataset_report(ds)
    html = render(page)
    assert_harmless(html, Page(html))
    assert page.clusters and page.analysis is not None and page.analysis.correlation is not None and page.analysis.drift
    assert "alert(1)" in html and "\x1b" not in html and "\u202e" not in html
