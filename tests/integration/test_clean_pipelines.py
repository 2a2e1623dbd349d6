"""Checks in pipelines: what is looked at is not written, what need not be read is not, and what was worked out is found again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset import Dataset, Source, list_refs, write_dataset
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput
from leptonstore.process.checks.duplicates import Duplicates
from leptonstore.process.checks.label_errors import LabelErrors
from leptonstore.process.checks.leakage import Leakage
from leptonstore.process.checks.nulls import Nulls
from leptonstore.process.checks.outliers import Outliers
from leptonstore.process.clean import find
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store

pytest.importorskip("daft")


def written(store: Store, table: pa.Table) -> Dataset:
    return write_dataset(store, "d", Source(table.schema, ("id",), lambda: iter(table.to_batches()), len(table)))


def files(rows: int) -> list[bytes]:
    """Values that are chunks of their own."""
    rng = np.random.default_rng(0)
    made = [rng.bytes(20_000) for _ in range(rows)]
    made[7], made[9] = made[2], made[2]
    return made


def test_large_values_are_compared_without_being_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    values = files(40)
    split = class_label_field("split", ["train", "test"])
    table = pa.table({"id": range(40), "file": pa.array(values, pa.large_binary())})
    table = table.append_column(split, pa.array([0] * 8 + [1] * 32, pa.uint8()))
    ds = written(store, table)
    asked: set[bytes] = set()

    def spied(name: str) -> Callable[..., Any]:
        real = getattr(Store, name)

        def spy(self: Store, digests: Any) -> Any:
            known = [digests] if isinstance(digests, bytes) else list(digests)
            asked.update(known)
            return real(self, digests if isinstance(digests, bytes) else known)

        return spy

    for name in ("get", "get_many", "find_many"):
        monkeypatch.setattr(Store, name, spied(name))
    checks = [Duplicates(columns=["file"]), Leakage(columns=["file"]), Nulls(columns=["file"])]
    found = Pipeline("d", checks).look(store).findings.to_pylist()
    assert [(one["row"], one["check"], one["other"]) for one in found] == [
        (2, "leakage", 9), (7, "duplicates", 2), (7, "leakage", 9),
    ]  # fmt: skip
    wanted = {digest_of(value) for value in values}
    assert not asked & wanted
    assert ds[3]["file"] == values[3] and asked & wanted  # or the spy is blind


def test_what_is_looked_at_is_not_written_and_is_what_a_run_finds(store: Store) -> None:
    table = pa.table({"id": range(200), "text": [f"t{row % 150}" for row in range(200)], "n": [None, 1] * 100})
    ds = written(store, table)
    pipeline = Pipeline(
        "d", [Nulls(action="drop"), Duplicates(columns=["text"], action="drop"), Nulls(columns=["text"])], "d@clean"
    )
    before = [(info.name, info.branch, info.commit) for info in list_refs(store, "dataset")]
    looked = pipeline.look(store)
    assert [(info.name, info.branch, info.commit) for info in list_refs(store, "dataset")] == before
    assert looked.dataset.commit == ds.commit and not looked.written
    ran = pipeline.run(store)
    assert ran.findings.equals(looked.findings) and ran.counts == looked.counts
    assert [one["out"] for one in looked.counts] == [100, 75, 75] and len(ran.dataset) == 75
    # Numbers of rows are those of the version that was read, whatever was dropped before.
    texts = table["text"].to_pylist()
    for one in looked.findings.to_pylist():
        if one["check"] == "duplicates":
            assert texts[one["row"]] == texts[one["other"]] and one["other"] == one["group"] < one["row"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1.0, 2.0, 3.0, 900.0, None]), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=15, deadline=None)
def test_a_pipeline_finds_what_one_pass_in_this_process_finds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, float | None, bool]]
) -> None:
    names = ["text", "x", "test"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    split = pa.array([int(one) for one in columns.pop("test")], pa.uint8())
    table = pa.table(
        {
            "id": range(len(rows)),
            "text": pa.array(columns["text"], pa.string()),
            "x": pa.array(columns["x"], pa.float64()),
        }
    )
    table = table.append_column(class_label_field("split", ["train", "test"]), split)
    checks = [Duplicates(columns=["text"]), Leakage(columns=["text"]), Outliers(columns=["x"])]
    with Store.create(tmp_path_factory.mktemp("same") / "store") as store:
        ds = written(store, table)
        assert Pipeline("d", checks).look(store).findings.equals(find(ds, checks).findings)


def test_what_was_measured_for_a_report_is_there_when_rows_are_dropped(store: Store) -> None:
    pytest.importorskip("cleanlab")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    images = rng.integers(0, 40, (120, 28, 28), np.uint8)
    images[labels == 1, :, 10:14] = 200
    labels[[3, 50]] ^= 1
    fields = [
        pa.field("id", pa.int64()),
        tensor_field("image", pa.uint8(), (28, 28), "image"),
        class_label_field("label", ["a", "b"]),
    ]
    arrays = [
        pa.array(np.arange(120)),
        pa.FixedShapeTensorArray.from_numpy_ndarray(images),
        pa.array(labels, pa.uint8()),
    ]
    written(store, pa.Table.from_arrays(arrays, schema=pa.schema(fields)))
    first = Pipeline("d", [LabelErrors()]).look(store)
    assert {3, 50} <= set(first.findings["row"].to_pylist()) and first.computed == 120
    again = Pipeline("d", [LabelErrors(action="fix", folds=4)], "d@fixed").run(store)
    assert (again.reused, again.computed) == (120, 0)
    assert {row for row in (3, 50) if again.dataset[row]["label"] == labels[row]} == set()


def test_a_pipeline_of_checks_that_would_leave_no_row_says_so(store: Store) -> None:
    written(store, pa.table({"id": range(5), "n": pa.nulls(5, pa.int64())}))
    with pytest.raises(BadInput, match="no row of d@main would be left"):
        Pipeline("d", [Nulls(action="drop")]).run(store)
