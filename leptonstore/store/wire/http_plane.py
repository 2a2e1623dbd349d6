"""Requests over HTTP with the standard library: for processes that cannot use Flight (flight_plane.py), such as forked worker processes.

POST /v1/<operation> with the same bytes that Flight carries; the answer is JSON or bytes, or an Arrow IPC stream of a "get". Of a "put"
the body is such a stream, and the session stands in the query.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import ssl
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from leptonstore import limits
from leptonstore.errors import LeptonError, NotPermitted
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.address import Host
from leptonstore.store.wire.credentials import Credentials
from leptonstore.store.wire.messages import parse
from leptonstore.store.wire.plane import Unreached


class HttpPlane:
    """Plane over HTTP. A request has a connection of its own for as long as it lasts; they are kept, and used again."""

    def __init__(self, host: Host, tls: bool, credentials: Credentials) -> None:
        self._host, self._token = host, credentials.token
        self._context = _tls_context(credentials) if tls else None
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def _connection(self, seconds: float) -> Iterator[tuple[http.client.HTTPConnection, bool]]:
        """(connection, whether it was used before); after a failure, or when not all of an answer was read, it is not used again."""
        with self._lock:
            if self._closed:
                raise Unreached("the connection is closed")
            kept = self._idle.pop() if self._idle else None
        connection = kept if kept is not None else self._new()
        try:
            connection.timeout = limits.WIRE_CONNECT_S if kept is None else seconds
            if kept is None:
                connection.connect()
            connection.sock.settimeout(seconds)
            yield connection, kept is not None
        except (OSError, http.client.HTTPException, pa.ArrowException, EOFError) as error:
            connection.close()
            raise _told(error) from None
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if connection.sock is not None and not self._closed and len(self._idle) < limits.WIRE_CLIENTS_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def _new(self) -> http.client.HTTPConnection:
        name, port = self._host
        if self._context is not None:
            return http.client.HTTPSConnection(name, port, context=self._context)
        return http.client.HTTPConnection(name, port)

    @contextlib.contextmanager
    def _post(self, request: bytes, seconds: float, query: str = "", body: bytes | None = None) -> Iterator[Any]:
        """The answer, to be read. Raises the error that it is."""
        headers = {"Content-Type": "application/octet-stream"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        path = f"/v1/{parse(request).op}{query}"
        with self._connection(seconds) as (connection, used):
            try:
                connection.request("POST", path, request if body is None else body, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException):
                if not used:
                    raise
                connection.close()  # the daemon had closed it meanwhile
                connection.connect()
                connection.sock.settimeout(seconds)
                connection.request("POST", path, request if body is None else body, headers)
                response = connection.getresponse()
            if response.status != 200:
                raise _refused(response.status, response.read(limits.WIRE_ERROR_BYTES_MAX + 1))
            yield response
            if not response.isclosed():
                response.read(1)  # the end of a chunked answer
            if not response.isclosed():
                connection.close()

    def act(self, request: bytes, seconds: float) -> bytes:
        """As Plane."""
        with self._post(request, seconds) as response:
            data: bytes = response.read(limits.WIRE_ANSWER_BYTES_MAX + 1)
            if len(data) > limits.WIRE_ANSWER_BYTES_MAX:
                raise Unreached(f"an answer of more than {limits.WIRE_ANSWER_BYTES_MAX >> 20} MiB")
            return data

    def stream(self, request: bytes, seconds: float) -> Iterator[pa.RecordBatch]:
        """As Plane."""
        with self._post(request, seconds) as response, pa.ipc.open_stream(pa.PythonFile(response, "r")) as reader:
            yield from reader

    def send(
        self, request: bytes, session: str, batches: Sequence[pa.RecordBatch], seconds: float
    ) -> Mapping[str, Any]:
        """As Plane."""
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        query = f"?session={urllib.parse.quote(session, safe='')}"
        with self._post(request, seconds, query, sink.getvalue()) as response:
            told: Mapping[str, Any] = json.loads(response.read(limits.WIRE_ANSWER_BYTES_MAX) or b"{}")
            return told

    def close(self) -> None:
        """As Plane."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """As Plane. Closing a descriptor that was inherited leaves the parent's open."""
        for connection in self._idle:
            if connection.sock is not None:
                connection.sock.close()


def _tls_context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=None if credentials.ca is None else credentials.ca.decode("ascii"))
    if credentials.certificate_file:
        context.load_cert_chain(credentials.certificate_file, credentials.key_file)
    return context


def _refused(status: int, body: bytes) -> LeptonError | Unreached:
    told = wire_errors.decode(body)
    if told is not None:
        return told
    if status in (401, 403):
        return NotPermitted(f"the daemon refused this request (HTTP {status})")
    return Unreached(f"HTTP {status}")


def _told(error: BaseException) -> Unreached:
    if isinstance(error, TimeoutError):
        return Unreached("it did not answer in time")
    if isinstance(error, ssl.SSLError):
        return Unreached(
            "TLS fails: does LEPTON_CA name who signed the daemon's certificate, and is the host's name in it?"
        )
    if isinstance(error, ConnectionRefusedError):
        return Unreached("nothing answers there")
    return Unreached(f"the connection was lost ({str(error)[:200] or type(error).__name__})")
