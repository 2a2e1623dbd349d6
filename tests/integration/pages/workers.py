"""docs/workers.md: texts, one of which is not a number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    texts = ["not a number" if row == 70 else str(row) for row in range(1_000)]
    place.names["ds"] = place.write("samples", pa.table({"id": np.arange(1_000), "text": texts}))
    yield
