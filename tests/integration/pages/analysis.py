"""docs/analysis.md: a dataset of texts and numbers, and rows to append whose prices have drifted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import class_label_field, text_field
from tests.integration.docs_blocks import Place


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


def setting(place: Place) -> Iterator[None]:
    place.names |= {"ds": place.write("birds", rows(2_000, 0, 3)), "more": rows(2_000, 2_000, 5)}
    yield
    assert [one.name for one in place.names["again"].drift.marked()] == ["id", "price"]
