"""The data plane of a daemon, through a bare Flight client: what a client puts and reads is what a local Store has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from flight_data import Client, new_store, records, serving

from leptonstore.daemon.flight import FlightServer
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.digest import digest_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlightServer]:
    with new_store(tmp_path_factory.mktemp("daemon")) as store, serving(store) as made:
        yield made


@pytest.fixture
def client(server: FlightServer) -> Iterator[Client]:
    made = Client(server.port)
    yield made
    made.close()


def test_hello_tells_what_a_client_needs_to_know(client: Client, server: FlightServer) -> None:
    told = client.act("hello")
    assert told["protocol"] == 1
    assert told["store"]["name"] == "store"
    assert told["store"]["id"] == server.service.store.config.store_id.hex()


def test_what_is_put_is_read_back(client: Client) -> None:
    values = [b"one", b"two" * 1000, bytes(100_000)]
    named = [(digest_of(value), value) for value in values]
    session = client.act("open")["session"]
    acknowledged = client.put(session, [records(named)])
    assert acknowledged[-1].items() >= {"records": 3, "bytes": sum(map(len, values)), "done": True}.items()
    client.act("flush", session=session)
    assert [data for _, data in client.values([digest for digest, _ in named])] == values
    client.act("close", session=session)


def test_rows_and_take_are_those_of_the_dataset(client: Client, server: FlightServer) -> None:
    store = server.service.store
    table = pa.table({"id": np.arange(20_000), "x": np.arange(20_000, dtype=np.float32)})
    write_dataset(store, "numbers", Source(table.schema, ("id",), lambda: iter(table.to_batches())))
    rows = client.get("rows", dataset="numbers", start=500, stop=15_500)
    assert rows.equals(Dataset.open(store, "numbers").to_arrow().slice(500, 15_000))
    wanted = np.array([19_999, 0, 7, 7, 12_345], np.int64)
    assert client.get("take", wanted.tobytes(), dataset="numbers", columns=["x"])["x"].to_pylist() == wanted.tolist()
