"""docs/orders.md: samples with weights, scores, classes and tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    rows, rng = 2_000, np.random.default_rng(0)
    table = pa.table(
        {
            "id": np.arange(rows),
            "label": rng.integers(0, 10, rows),
            "weight": rng.random(rows),
            "score": rng.random(rows),
            "tokens": pa.array([list(range(int(size))) for size in rng.integers(1, 50, rows)]),
        }
    )
    place.names["ds"] = place.write("samples", table)
    yield
    assert len(place.names["rows"]) == 64
