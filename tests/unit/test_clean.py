"""Cleaning finds exactly what was planted, raises no false alarm, and removes rows without losing them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from process_data import encode, encoded_table, noise, tensor_table, write

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.checks.leakage import Leakage
from leptonstore.process.checks.outliers import Outliers
from leptonstore.process.clean import CleanReport, apply_clean, find
from leptonstore.store import Store

NAMES = ["a", "b", "c"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store") as store:
        yield store


def found(report: CleanReport) -> list[tuple[int, str, int | None]]:
    return [(one["row"], one["check"], one["other"]) for one in report.findings.to_pylist()]


def test_clean_data_has_no_findings_and_no_new_version(store: Store) -> None:
    ds = write(store, "d", tensor_table(noise(9_000, 4, 4), np.arange(9_000) % 3, NAMES), ["id"])
    report = find(ds)
    assert len(report.findings) == 0 and report.counts() == {} and report.rows == 9_000
    assert apply_clean(store, ds, report) is ds


def test_what_was_planted_in_tensors_is_found_exactly(store: Store) -> None:
    images, labels = noise(9_000, 4, 4), np.arange(9_000) % 3
    images[40] = 0
    images[41] = 200
    images[8_000] = images[17]
    images[17 + 3] = images[17]
    labels[17 + 3] = labels[17]
    labels[8_000] = 1
    labels[99] = 3
    ds = write(store, "d", tensor_table(images, labels, NAMES), ["id"])
    report = find(ds)
    assert found(report) == [
        (20, "duplicates", 17),
        (40, "constant", None),
        (41, "constant", None),
        (99, "labels_out_of_range", None),
        (8_000, "duplicates", 17),
    ]
    assert "labelled" not in report.findings["detail"][0].as_py()
    assert report.findings["detail"][4].as_py() == "repeats an earlier row, labelled c there and b here"
    assert json.loads(json.dumps(report.to_json()))["counts"] == {
        "constant": 2,
        "labels_out_of_range": 1,
        "duplicates": 2,
    }


def test_what_was_planted_in_files_is_found_exactly(store: Store) -> None:
    files = [encode(one) for one in noise(30, 6, 6, 3)]
    files[3] = files[3][:60]
    files[4] = b"<html>not found</html>"
    files[5] = encode(np.full((6, 6, 3), (9, 8, 7), dtype=np.uint8))
    files[20] = files[10]
    files[21] = files[3]  # a damaged copy of a damaged file: undecodable, not a duplicate
    ds = write(store, "d", encoded_table(files, [at % 3 for at in range(30)], NAMES), ["path"])
    report = find(ds)
    assert found(report) == [
        (3, "undecodable", None),
        (4, "undecodable", None),
        (5, "constant", None),
        (20, "duplicates", 10),
        (21, "undecodable", None),
    ]
    assert report.findings["detail"][2].as_py() == "every pixel is 9, 8, 7"


def test_the_kept_copy_is_a_good_one(store: Store) -> None:
    images, labels = noise(10, 3, 3), np.zeros(10, dtype=int)
    images[6] = images[2]
    labels[2] = 77
    report = find(write(store, "d", tensor_table(images, labels, NAMES), ["id"]))
    assert found(report) == [(2, "labels_out_of_range", None)]


def test_leakage_is_removed_from_train_and_kept_in_test(store: Store) -> None:
    images = noise(12, 3, 3)
    images[9] = images[1]  # train 1, test 9
    images[2] = images[1]  # and once more in train
    images[7] = images[6]  # both in val
    images[11] = images[6]  # and in test
    splits = ["train"] * 5 + ["val"] * 3 + ["test"] * 4
    report = find(write(store, "d", tensor_table(images, [0] * 12, NAMES, splits), ["id"]))
    assert found(report) == [
        (1, "leakage", 9), (2, "duplicates", 1), (2, "leakage", 9), (6, "leakage", 11), (7, "duplicates", 6), (7, "leakage", 11),
    ]  # fmt: skip
    assert report.findings["detail"][0].as_py() == "an equal row stands in test"


def test_images_that_cannot_be_constant_are_left_alone(store: Store) -> None:
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1)
    assert find(write(store, "d", tensor_table(pixels, [0] * 5, NAMES), ["id"])).findings.num_rows == 0


def test_equal_rows_of_a_table_without_images_are_no_mistake(store: Store) -> None:
    table = pa.table({"x": [1, 1, 1, 2]})
    assert find(write(store, "d", table, ["x"])).findings.num_rows == 0


def test_a_row_without_label_is_found_and_one_without_a_note_is_not(store: Store) -> None:
    table = tensor_table(noise(5, 3, 3), [0] * 5, NAMES)
    field = table.schema.field("label").with_nullable(True)
    table = table.set_column(2, field, pa.array([0, None, 1, 2, 0], pa.uint8()))
    table = table.append_column("note", pa.array([None, "a", None, None, "b"]))
    assert found(find(write(store, "d", table, ["id"]))) == [(1, "nulls", None)]


def test_other_checks_may_be_asked_for(store: Store) -> None:
    table = pa.table({"id": range(60), "x": [*range(59), 10_000]})
    ds = write(store, "d", table, ["id"])
    report = find(ds, [Outliers()])
    assert found(report) == [(59, "outliers", None)] and report.checks == ("outliers",)
    assert len(apply_clean(store, ds, report)) == 59
    with pytest.raises(SchemaError, match="no column 'split'"):
        find(ds, [Leakage(columns=["x"])])


def naive_duplicates(images: np.ndarray, splits: list[str]) -> list[tuple[int, str, int]]:
    rank = {"test": 0, "val": 1, "train": 2}
    groups: dict[bytes, list[int]] = {}
    for row, image in enumerate(images):
        if image.min() != image.max():
            groups.setdefault(image.tobytes(), []).append(row)
    expected = []
    for rows in groups.values():
        kept = min(rows, key=lambda row: (rank[splits[row]], row))
        for row in rows:
            first = min(one for one in rows if splits[one] == splits[row])
            if row != first:
                expected.append((row, "duplicates", first))
            if splits[row] != splits[kept]:
                expected.append((row, "leakage", kept))
    return sorted(expected)


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_are_those_of_a_plain_search(store: Store, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 2, (60, 2, 3), dtype=np.uint8)
    splits = ["train", "val", "test", *(str(one) for one in rng.choice(["train", "val", "test"], 57))]
    report = find(write(store, "d", tensor_table(images, [0] * 60, NAMES, splits), ["id"]))
    assert [one for one in found(report) if one[1] != "constant"] == naive_duplicates(images, splits)
    assert report.counts().get("constant", 0) == sum(image.min() == image.max() for image in images)


def test_the_new_version_lacks_exactly_the_rows_found(store: Store) -> None:
    images = noise(9_000, 3, 3)
    images[[0, 4_000, 8_999]] = 5
    table = tensor_table(images, np.arange(9_000) % 3, NAMES)
    ds = write(store, "d", table, ["id"])
    report = find(ds)
    cleaned = apply_clean(store, ds, report)
    kept = np.setdiff1d(np.arange(9_000), [0, 4_000, 8_999])
    assert cleaned.to_arrow(columns=["id"]).column("id").to_pylist() == kept.tolist()
    assert np.array_equal(cleaned[0]["image"], images[1])
    assert find(cleaned).findings.num_rows == 0
    commit = cleaned.commit_object
    assert [parent.hex() for parent in commit.parents] == [ds.commit]
    assert commit.lineage["removed"] == {"constant": 3} and commit.lineage["rows_removed"] == 3
    assert commit.message == "clean: 3 of 9000 rows removed (3 constant)"
    assert len(Dataset.open(store, f"d@{ds.commit}")) == 9_000


def test_cleaning_again_gives_the_same_commit(store: Store) -> None:
    images = noise(50, 3, 3)
    images[9] = images[8]
    ds = write(store, "d", tensor_table(images, [0] * 50, NAMES), ["id"])
    first = apply_clean(store, ds, find(ds))
    assert apply_clean(store, ds, find(ds)).commit == first.commit != ds.commit


def test_what_a_branch_held_before_stays_in_history(store: Store) -> None:
    images = noise(50, 3, 3)
    images[9] = images[8]
    first = write(store, "d", tensor_table(images, [0] * 50, NAMES), ["id"])
    cleaned = apply_clean(store, first, find(first), branch="clean")
    images[20] = 0
    second = write(store, "d", tensor_table(images, [0] * 50, NAMES), ["id"])
    again = apply_clean(store, second, find(second), branch="clean")
    assert [parent.hex() for parent in again.commit_object.parents] == [second.commit, cleaned.commit]
    assert apply_clean(store, second, find(second), branch="clean").commit == again.commit
    assert Dataset.open(store, "d@clean").commit == again.commit
    assert Dataset.open(store, "d").commit == second.commit


def test_encoded_images_can_be_cleaned(store: Store) -> None:
    files = [encode(one) for one in noise(10, 6, 6)]
    files[2] = b"\xff\xd8\xff"
    ds = write(store, "d", encoded_table(files, [0] * 10, NAMES), ["path"])
    cleaned = apply_clean(store, ds, find(ds))
    assert [row["image"] for row in (cleaned[at] for at in range(9))] == files[:2] + files[3:]


def test_a_report_about_something_else_is_refused(store: Store) -> None:
    images = noise(20, 3, 3)
    images[3] = 1
    ds = write(store, "d", tensor_table(images, [0] * 20, NAMES), ["id"])
    other = write(store, "other", tensor_table(images[:10], [0] * 10, NAMES), ["id"])
    with pytest.raises(BadInput, match=r"run find\(\) again"):
        apply_clean(store, other, find(ds))
    view = ds.select(np.arange(5))
    report = find(view)
    assert found(report) == [(3, "constant", None)]
    with pytest.raises(BadInput, match="view"):
        apply_clean(store, view, report)


def test_a_dataset_is_never_emptied(store: Store) -> None:
    ds = write(store, "d", tensor_table(np.zeros((4, 3, 3), dtype=np.uint8), [0] * 4, NAMES), ["id"])
    with pytest.raises(BadInput, match="every row"):
        apply_clean(store, ds, find(ds))
