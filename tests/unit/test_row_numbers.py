"""Rows are given by their numbers, in any way that has numbers; nothing else is taken for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.store import Store


@pytest.fixture
def ds(store: Store) -> Dataset:
    return Dataset.create(store, "d", {"i": np.arange(6)})


@pytest.mark.parametrize(
    "rows",
    [[0], (0,), {0}, range(1), np.array([0]), np.array([0], np.uint8), pa.array([0]), iter([0])],
    ids=lambda one: type(one).__name__,
)
def test_the_first_row_alone_is_deleted(ds: Dataset, rows: Any) -> None:
    """An array of one zero is false to Python: nothing was deleted."""
    assert ds.delete(rows=rows).to_arrow()["i"].to_pylist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "rows", [[False] * 4 + [True] * 2, np.array([True] * 6), [1.0], np.array([0.5]), [[1]], 1, "1", [None]], ids=repr
)
@pytest.mark.parametrize("use", ["select", "take", "delete"])
def test_a_mask_or_fractions_are_no_row_numbers(ds: Dataset, rows: Any, use: str) -> None:
    """Of a mask, false and true were rows 0 and 1: those were deleted."""
    uses: dict[str, Callable[[Any], Any]] = {
        "select": ds.select,
        "take": ds.take,
        "delete": lambda one: ds.delete(rows=one),
    }
    with pytest.raises(BadInput, match="rows are given by their numbers"):
        uses[use](rows)


def test_no_rows_are_no_rows(ds: Dataset) -> None:
    for none in ([], np.array([]), range(0)):
        assert len(ds.select(none)) == ds.take(none).num_rows == 0
