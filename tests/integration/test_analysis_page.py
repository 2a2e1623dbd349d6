"""docs/analysis.md: its code runs, and what it says of errors and thresholds is what the code has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.schema import class_label_field, text_field
from leptonstore.process.statistics import distinct, drift
from leptonstore.process.statistics.results import QUANTILES
from leptonstore.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()


def rows(count: int, first: int, price: float) -> pa.Table:
    rng = np.random.default_rng(first)
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            ("price", pa.float64()),
            ("width", pa.int32()),
            text_field("text"),
            class_label_field("label", ["cat", "dog", "eel"]),
            class_label_field("split", ["train", "test"]),
        ]
    )
    arrays = [
        pa.array(np.arange(first, first + count)),
        pa.array(rng.lognormal(price, 1, count), mask=rng.random(count) < 0.1),
        pa.array(rng.integers(1, 99, count).astype(np.int32)),
        pa.array([f"text {one}" for one in rng.integers(0, 10**6, count)]),
        pa.array(rng.integers(0, 3, count).astype(np.uint8)),
        pa.array((rng.random(count) < 0.2).astype(np.uint8)),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def test_the_code_of_the_page_runs(store: Store, source_of: Callable[..., Source]) -> None:
    ds = write_dataset(store, "birds", source_of(rows(2_000, 0, 3), ("id",)))
    names: dict[str, object] = {"ds": ds, "more": rows(2_000, 2_000, 5)}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, names)
    assert [one.name for one in names["again"].drift.marked()] == ["id", "price"]  # type: ignore[attr-defined]


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    shares = ", ".join(f"{100 * share:.0f}" for share in QUANTILES)
    assert f"({shares} %)" in PAGE and f"histogram of {limits.HISTOGRAM_BINS} bins" in PAGE
    assert f"{limits.STATISTICS_EXACT_VALUES:,}" in PAGE and f"{limits.STATISTICS_POINTS_MAX:,}" in PAGE
    assert f"(strings: {limits.STATISTICS_FREQUENT:,})" in PAGE and f"{100 * distinct.ERROR:.1f} %" in PAGE
    assert round(100 / (2 * limits.STATISTICS_BLOCK_POINTS), 1) == 0.1 and "0.1 %" in PAGE
    for value in (drift.PSI_SOME, drift.PSI_MUCH, drift.VARIATION_SOME, drift.VARIATION_MUCH):
        assert f" {value}" in PAGE
    assert f"{100 * drift.NULLS_SOME:.0f} % of the rows" in PAGE and f"{100 * drift.NULLS_MUCH:.0f} %" in PAGE
