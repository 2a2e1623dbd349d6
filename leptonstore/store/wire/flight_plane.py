"""Requests over Arrow Flight. A process that was forked from one that had a Flight client cannot use it (measured: gRPC's threads are not
there, and the first call of a new client never returns): `usable` says whether this one can.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from leptonstore import limits
from leptonstore.errors import LeptonError
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.address import Host
from leptonstore.store.wire.credentials import Credentials
from leptonstore.store.wire.plane import Unreached

_OPTIONS = [
    ("grpc.max_receive_message_length", limits.WIRE_BATCH_BYTES_MAX + limits.MIB),
    ("grpc.use_local_subchannel_pool", 1),  # else all clients of a process would share one connection
    ("grpc.enable_retries", 0),  # link.py retries, and counts the time
]


class _Process:
    """What this process did with Flight."""

    clients = False  # it, or one that it was forked from, made a client
    barred = False  # it was forked from such a one


def usable() -> bool:
    """Whether this process can use Flight."""
    return not _Process.barred


def _in_child() -> None:
    _Process.barred = _Process.clients


os.register_at_fork(after_in_child=_in_child)


@dataclass
class _Client:
    """A connection, and how many requests it carries."""

    client: flight.FlightClient
    under_way: int = 0


class FlightPlane:
    """Plane over Flight. At most WIRE_CLIENTS_MAX connections: a request takes the one with the fewest under way."""

    def __init__(self, host: Host, tls: bool, credentials: Credentials) -> None:
        self._location = f"{'grpc+tls' if tls else 'grpc+tcp'}://{host}"
        self._tls: dict[str, Any] = {}
        if tls:
            given = {
                "tls_root_certs": credentials.ca,
                "cert_chain": credentials.certificate,
                "private_key": credentials.key,
            }
            self._tls = {name: value for name, value in given.items() if value is not None}
        self._headers = [(b"authorization", f"Bearer {credentials.token}".encode())] if credentials.token else []
        self._clients: list[_Client] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def _client(self) -> Iterator[flight.FlightClient]:
        with self._lock:
            if self._closed:
                raise Unreached("the connection is closed")
            if len(self._clients) < limits.WIRE_CLIENTS_MAX and all(one.under_way for one in self._clients):
                _Process.clients = True
                self._clients.append(
                    _Client(flight.FlightClient(self._location, generic_options=_OPTIONS, **self._tls))
                )
            chosen = min(self._clients, key=lambda one: one.under_way)
            chosen.under_way += 1
        try:
            yield chosen.client
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            raise _told(error) from None
        finally:
            with self._lock:
                chosen.under_way -= 1

    def _call(self, seconds: float) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=seconds, headers=self._headers)

    def act(self, request: bytes, seconds: float) -> bytes:
        """As Plane."""
        with self._client() as client:
            action = flight.Action(_op_of(request), request)
            parts, size = [], 0
            for result in client.do_action(action, self._call(seconds)):
                parts.append(result.body.to_pybytes())
                size += len(parts[-1])
                if size > limits.WIRE_ANSWER_BYTES_MAX:
                    raise Unreached(f"an answer of more than {limits.WIRE_ANSWER_BYTES_MAX >> 20} MiB")
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def stream(self, request: bytes, seconds: float) -> Iterator[pa.RecordBatch]:
        """As Plane."""
        with self._client() as client:
            reader = client.do_get(flight.Ticket(request), self._call(seconds))
            ended = False
            try:
                while True:
                    try:
                        chunk = reader.read_chunk()
                    except StopIteration:
                        ended = True
                        return
                    yield chunk.data
            finally:
                if not ended:
                    reader.cancel()

    def send(
        self, request: bytes, session: str, batches: Sequence[pa.RecordBatch], seconds: float
    ) -> Mapping[str, Any]:
        """As Plane."""
        with self._client() as client:
            descriptor = flight.FlightDescriptor.for_command(request)
            writer, answers = client.do_put(descriptor, batches[0].schema, self._call(seconds))
            last = b""
            with writer:
                for batch in batches:
                    writer.write_batch(batch)
                writer.done_writing()
                while (answer := answers.read()) is not None:
                    last = answer.to_pybytes()
            told: Mapping[str, Any] = json.loads(last) if last else {}
            return told

    def close(self) -> None:
        """As Plane. Requests that are under way end by themselves."""
        with self._lock:
            self._closed = True
            clients, self._clients = self._clients, []
        for one in clients:
            with contextlib.suppress(flight.FlightError, pa.ArrowException):
                one.client.close()

    def abandon(self) -> None:
        """As Plane. They are never freed: ending a client waits for threads that a child does not have."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._clients))


def _op_of(request: bytes) -> str:
    """The operation that an encoded request names: Flight wants it beside the body."""
    from leptonstore.store.wire.messages import parse

    return parse(request).op


def _told(error: BaseException) -> LeptonError | Unreached:
    told = wire_errors.decode(getattr(error, "extra_info", b""))
    if told is not None:
        return told
    text = str(error).partition("\n")[0]
    if isinstance(error, flight.FlightTimedOutError):
        text = "it did not answer in time"
    elif any(word in text.lower() for word in ("handshake", "certificate", "tls", "ssl")):
        text = "TLS fails: does LEPTON_CA name who signed the daemon's certificate, and is the host's name in it?"
    elif isinstance(error, flight.FlightUnavailableError):
        text = "nothing answers there" if "connect" in text.lower() else "the connection was lost"
    return Unreached(text[:300])
