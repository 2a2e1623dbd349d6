"""docs/remote-stores.md: a store that is served."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from tests.integration.docs_blocks import Place
from tests.integration.remote_data import served

EXTRAS = ("pandas",)


def setting(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    rows = 200
    table = pa.table({"id": np.arange(rows), "label": np.arange(rows) % 3, "text": [str(row) for row in range(rows)]})
    with served(place.folder, monkeypatch) as there:
        write_dataset(there.store, "samples", Source(table.schema, ("id",), table.to_batches, rows, {}))
        place.names["URL"] = there.url
        yield
        names = place.names
        assert len(names["first"]["id"]) == 32 and len(names["frame"]) == len(names["table"]) == rows
