"""A store behind a data plane in this process, opened by leptonstore's own client: for tests of what a served store promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.daemon.access import Access, AccessSettings
from leptonstore.daemon.flight import FlightServer
from leptonstore.daemon.rates import RateLimits
from leptonstore.daemon.service import Service
from leptonstore.dataset import Source
from leptonstore.store import Store
from leptonstore.store.remote_store import RemoteStore

TOKEN = "local-token-of-this-test-" + 20 * "x"
ROWS = 2_000


def source(rows: int = ROWS, seed: int = 0) -> Source:
    """Numbers, short texts, and values that are chunks of their own."""
    rng = np.random.default_rng(seed)
    table = pa.table(
        {
            "id": np.arange(rows) + seed * 1_000_000,
            "x": rng.random(rows, np.float32),
            "image": [rng.bytes(18_000 + at) if at % 5 == 0 else rng.bytes(40) for at in range(rows)],
        }
    )
    return Source(schema=table.schema, identity=("id",), batches=lambda: table.to_batches(500))


class Served:
    """A store, who serves it, and the URL that a client opens."""

    def __init__(self, store: Store, server: FlightServer) -> None:
        self.store, self.server = store, server
        self.url = f"lepton://127.0.0.1:{server.port}/{server.service.name}"

    def open(self) -> RemoteStore:
        opened = Store.open(self.url)
        assert isinstance(opened, RemoteStore)
        return opened


@contextmanager
def serving(store: Store, port: int = 0, **options: Any) -> Iterator[Served]:
    """The data plane over `store`. options: of Service."""
    service = Service(store, **options)
    access = Access.of(store, AccessSettings(rates=RateLimits()), local_token=TOKEN)
    server = FlightServer(service, access, "127.0.0.1", port)
    try:
        yield Served(store, server)
    finally:
        server.drain(5.0)
        server.shutdown()
        service.close()


@contextmanager
def served(place: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Served]:
    """A new store in `place`, served by this process; the client's token stands in the environment."""
    monkeypatch.setenv("LEPTON_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "client-cache"))
    place.mkdir(parents=True, exist_ok=True)
    with Store.create(place / "store", cache_dir=place / "cache") as store, serving(store, **options) as there:
        yield there
