"""A daemon's data plane in this process, and a bare Flight client of it: for tests of what stands below leptonstore's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from leptonstore.daemon.access import Access, AccessSettings
from leptonstore.daemon.flight import FlightServer
from leptonstore.daemon.rates import RateLimits
from leptonstore.daemon.service import Service
from leptonstore.errors import LeptonError
from leptonstore.store import Store
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.messages import encode, payload_of
from leptonstore.store.wire.records import PUT_SCHEMA

TOKEN = "local-token-of-this-test-" + 20 * "x"


class Client:
    """Requests as bytes, answers as they come; errors are those that the daemon told."""

    def __init__(self, port: int, token: str | None = TOKEN) -> None:
        self.flight = fl.connect(("127.0.0.1", port))
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        self.options = fl.FlightCallOptions(timeout=30, headers=headers)

    def act(self, op: str, payload: bytes = b"", **arguments: Any) -> Any:
        with told():
            body = encode(op, arguments, payload)
            (result,) = self.flight.do_action(fl.Action(op, body), self.options)
            data = result.body.to_pybytes()
        return data if op == "find" else json.loads(data)

    def get(self, op: str, payload: bytes = b"", **arguments: Any) -> pa.Table:
        with told():
            return self.flight.do_get(fl.Ticket(encode(op, arguments, payload)), self.options).read_all()

    def put(self, session: str, batches: Sequence[pa.RecordBatch], schema: pa.Schema = PUT_SCHEMA) -> list[Any]:
        acknowledged = []
        with told():
            descriptor = fl.FlightDescriptor.for_command(encode("put", {"session": session}))
            writer, reader = self.flight.do_put(descriptor, schema, self.options)
            try:
                for batch in batches:
                    writer.write_batch(batch)
                    acknowledged.append(json.loads(reader.read().to_pybytes()))
                writer.done_writing()
                acknowledged.append(json.loads(reader.read().to_pybytes()))
            finally:
                writer.close()
        return acknowledged

    def values(self, digests: Sequence[bytes], whole: bool = True) -> list[tuple[int, bytes]]:
        table = self.get("get", payload_of(digests), whole=whole)
        return list(zip(table["kind"].to_pylist(), table["data"].to_pylist(), strict=True))

    def close(self) -> None:
        self.flight.close()


@contextmanager
def told() -> Iterator[None]:
    """Inside, a Flight error is raised as the LeptonError that it carries."""
    try:
        yield
    except fl.FlightError as error:
        found = wire_errors.decode(error.extra_info) if error.extra_info else None
        if found is None:
            raise
        raise found from None


def records(values: Sequence[tuple[bytes, bytes]], kind: int = 1, content: int = 1) -> pa.RecordBatch:
    """A batch of `put`: (digest, data) each."""
    count = len(values)
    columns = [
        pa.array([digest for digest, _ in values], pa.binary(32)),
        pa.array([kind] * count, pa.uint8()),
        pa.array([content] * count, pa.uint8()),
        pa.array([0] * count, pa.uint8()),
        pa.array([data for _, data in values], pa.large_binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PUT_SCHEMA)


@contextmanager
def serving(store: Store, access: Access | None = None, drain_s: float = 5.0, **options: Any) -> Iterator[FlightServer]:
    """The data plane over `store`. options: of Service."""
    service = Service(store, **options)
    gate = access or Access.of(store, AccessSettings(rates=RateLimits()), local_token=TOKEN)
    server = FlightServer(service, gate)
    try:
        yield server
    finally:
        server.drain(drain_s)
        server.shutdown()
        service.close()


@contextmanager
def new_store(place: Path, **options: Any) -> Iterator[Store]:
    with Store.create(place / "store", cache_dir=place / "cache", **options) as store:
        yield store


__all__ = ["TOKEN", "Client", "LeptonError", "new_store", "records", "serving", "told"]
