"""docs/WIRE.md: a daemon of this process that serves a dataset of ten digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.testing import daemon
from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    place.write("digits", pa.table({"id": np.arange(10), "label": np.arange(10) % 3}))
    with daemon.running(place.folder / ".lepton", in_process=True, cache_bytes=0) as served:
        place.names |= {"host": "127.0.0.1", "port": served.told["port"], "token": served.token}
        yield
