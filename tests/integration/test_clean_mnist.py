"""Planted faults among real digits: found without a false alarm, or among the most suspicious (issue 8, "It holds when", line 2, in small).

`python -m bench.process_images` does it with all 70,000 digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.harness import ROOT
from bench.planted_mnist import Truth, planted_mnist
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.process.checks.constant import Constant
from leptonstore.process.checks.duplicates import Duplicates
from leptonstore.process.checks.label_errors import LabelErrors
from leptonstore.process.clean import find
from leptonstore.process.findings import worst
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store

pytest.importorskip("daft")
pytest.importorskip("cleanlab")

DATA = ROOT.parent / "shared" / "data" / "mnist"
DIGITS, COPIES, CONSTANT, WRONG = 6_000, 60, 30, 40
pytestmark = [
    pytest.mark.requires_mnist,
    pytest.mark.skipif(not DATA.is_dir(), reason="the digits are not beside the project"),
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dataset, Truth]]:
    table, truth = planted_mnist(DATA, DIGITS, COPIES, COPIES, CONSTANT, WRONG)
    place: Path = tmp_path_factory.mktemp("planted") / "store"
    with Store.create(place) as store:
        source = Source(table.schema, ("id",), lambda: iter(table.combine_chunks().to_batches()), len(table))
        yield write_dataset(store, "digits", source), truth


def test_copies_and_constant_images_are_found_without_a_false_alarm(planted: tuple[Dataset, Truth]) -> None:
    ds, truth = planted
    found = find(ds, [Duplicates(), Constant()]).findings.to_pylist()
    pairs = {tuple(sorted((one["row"], one["other"]))) for one in found if one["check"] == "duplicates"}
    assert pairs == {tuple(sorted(pair)) for pair in truth.exact.tolist()}
    assert [one["row"] for one in found if one["check"] == "constant"] == sorted(truth.constant.tolist())


def test_wrong_labels_are_among_the_most_suspicious(planted: tuple[Dataset, Truth]) -> None:
    ds, truth = planted
    result = Pipeline(ds.label, [Constant(action="drop"), LabelErrors(action="fix")], f"{ds.name}@fixed").run(ds.store)
    top = worst(result.findings, "label_errors", 2 * WRONG)
    hits = np.isin(truth.wrong, top["row"].to_numpy())
    assert hits.sum() >= 0.6 * WRONG
    # What it writes instead is mostly what stood there: the row number of the version that was read is its id.
    fixed = result.dataset.to_arrow(["id", "label"])
    now = dict(zip(fixed["id"].to_pylist(), fixed["label"].to_pylist(), strict=True))
    right = [now[row] == true for row, true in zip(truth.wrong.tolist(), truth.wrong_true.tolist(), strict=True)]
    assert sum(right) >= 0.6 * WRONG
