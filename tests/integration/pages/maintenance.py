"""docs/maintenance.md: a store behind a daemon of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa

from leptonstore.testing import daemon
from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    place.write("photos", pa.table({"id": range(10)}))
    place.names["store"] = place.store
    with daemon.running(place.folder / ".lepton", in_process=True, cache_bytes=0) as served:
        os.environ["LEPTON_STORE"] = served.url
        yield
