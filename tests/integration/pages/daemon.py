"""docs/daemon.md: a served store with a dataset of ten digits; ./store for the commands."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.store import Store
from leptonstore.testing import daemon
from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    place.write("digits", pa.table({"id": np.arange(10), "label": np.arange(10) % 3}))
    Store.create(place.folder / "store").close()
    served_place = place.folder / ".lepton"
    with daemon.running(served_place, in_process=True, cache=str(place.folder / "hot"), cache_bytes="64MiB") as served:
        place.names |= {"url": served.url, "place": served_place, "rows": 10}
        yield
