"""docs/receipts.md: 30,720 rows, so that epochs have 120 steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from loaders import DataLoader
from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    ds = place.write("samples", pa.table({"id": np.arange(30_720)}))
    place.names |= {"ds": ds, "DataLoader": DataLoader, "state": DataLoader(ds, 256, shuffle=True, seed=7).state_dict()}
    yield
