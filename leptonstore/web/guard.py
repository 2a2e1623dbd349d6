"""Guard: what stands between the network and the routes. Every request passes it, and is answered and logged by it exactly once.

It gives a request its id, holds headers and Host to the limits, asks who is there (`admit`), turns `Refused` (and anything else that
is raised) into the one JSON error there is, reads what is left of a refused body so that its sender sees the answer, counts, and logs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leptonstore.web.limits import (
    HEAD_BYTES_MAX,
    LINGER_BYTES_MAX,
    LINGER_S,
    LOGGED_CHARS_MAX,
    REQUEST_ID_CHARS_MAX,
    RETRY_AFTER_S,
)
from leptonstore.web.refusal import Refused, Told, nested

CLIENT_GONE = 499  # in the log: nobody was there to be answered (nginx's number)
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS: Mapping[str, str] = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{REQUEST_ID_CHARS_MAX}}}")
# An id names a request in the log and is no secret: a call of the system for each would hand the interpreter to other threads.
_PROCESS, _NUMBERS = secrets.token_hex(4), itertools.count(1)
_BY_STATUS = {404: "not_found", 405: "method_not_allowed"}

Headers = Mapping[bytes, list[bytes]]


class Watch(Protocol):
    """Who counts what happens. Called on the event loop."""

    def began(self, note: Note) -> None:
        """A request has come."""

    def refused(self, kind: str) -> None:
        """It, or a connection, is refused; `kind` is the type of the error."""

    def moved(self, note: Note, bytes_in: int, bytes_out: int) -> None:
        """Some of its bytes have come, or go; `note` has them too."""

    def ended(self, note: Note, seconds: float) -> None:
        """It has been answered, or nobody was there to be answered."""


@dataclass
class Note:
    """What the log says of one request; a route adds what it knows. Stands in the scope's state as "note"."""

    id: str
    method: str
    path: str
    client: str
    status: int = CLIENT_GONE
    token: str | None = None
    error: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    call: Any = None  # what who counts keeps of it; not logged
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self, seconds: float) -> dict[str, Any]:
        """JSON-able."""
        told = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.id,
            "client": self.client,
            "method": self.method,
            "path": self.path[:LOGGED_CHARS_MAX],
            "status": self.status,
            "ms": round(seconds * 1e3, 3),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "token": self.token,
            "error": self.error,
        }
        return {key: value for key, value in told.items() if value is not None} | self.more


class Guard:
    """An ASGI application around another.

    watch       is told of every request
    admit       is called before the routes with a request's note, headers and state; it raises Refused, or notes who asks
    hosts       names by which this server may be called (LOOPBACK_NAMES: a web page cannot reach it by rebinding a name); None for any
    access      is given a line of the log for every request; None for no log
    told        how an error looks as JSON
    headers     of every answer that does not set them itself, names in lower case
    nothing     what is said of a path that is not there
    translate   is asked for what to say of an exception of the routes; None: it is a bug, which the log has and the client is not told
    log         where bugs are logged
    """

    def __init__(
        self,
        app: ASGIApp,
        watch: Watch,
        *,
        admit: Callable[[Note, Headers, dict[str, Any]], None] | None = None,
        hosts: Container[str] | None = None,
        access: Callable[[str], None] | None = None,
        told: Told = nested,
        headers: Mapping[str, str] = HEADERS,
        nothing: str = "there is nothing at this path",
        translate: Callable[[Exception], Refused | None] = lambda error: None,
        log: logging.Logger | None = None,
    ) -> None:
        self._app, self._watch, self._admit_more, self._hosts, self._access = app, watch, admit, hosts, access
        self._told, self._nothing, self._translate = told, nothing, translate
        self._headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._log = log or logging.getLogger("lepton.web")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # uvicorn is told that there are neither web sockets nor a lifespan
            raise RuntimeError(f"a {scope['type']} connection")
        started = time.monotonic()
        exchange = _Exchange(scope, receive, send, self._headers, self._watch)
        self._watch.began(exchange.note)
        try:
            await self._answer(scope, exchange)
        finally:
            self._tell(exchange.note, time.monotonic() - started)

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        state = scope.setdefault("state", {})
        try:
            self._admit(exchange, state)
            scope["app"] = self  # so that the router raises for what it does not know
            state["note"] = exchange.note
            await self._app(scope, exchange.receive, exchange.send)
        except Refused as refused:
            await self._refuse(exchange, state, refused)
        except HTTPException as error:
            kind = _BY_STATUS.get(error.status_code, "malformed")
            allowed = dict(error.headers or {}).get("Allow", "")
            said = f"{exchange.note.method} is not for this path; use {allowed}" if allowed else self._nothing
            await self._refuse(exchange, state, Refused(kind, said, headers={"allow": allowed} if allowed else {}))
        except ClientDisconnect:
            exchange.note.error = "client_gone"
        except asyncio.CancelledError:  # drain_s is over: what is still under way is told so
            if exchange.started:
                raise
            await self._refuse(exchange, state, Refused("draining", "this server has stopped", RETRY_AFTER_S))
        except Exception as error:
            refused_so = self._translate(error)
            if refused_so is None:
                self._log.exception("request %s failed", exchange.note.id)
                refused_so = Refused(
                    "internal", f"internal error; the server's log says more of request {exchange.note.id}"
                )
            await self._refuse(exchange, state, refused_so)

    def _admit(self, exchange: _Exchange, state: dict[str, Any]) -> None:
        if exchange.head_bytes > HEAD_BYTES_MAX:
            raise Refused("headers_too_large", f"the headers are larger than {HEAD_BYTES_MAX:,} bytes")
        if b"content-length" in exchange.headers and b"transfer-encoding" in exchange.headers:
            # Where a body ends then depends on who reads it: behind a proxy the rest would be somebody's next request (RFC 9112, 6.3).
            raise Refused("malformed", "a body has a length, or comes in chunks", headers={"connection": "close"})
        if self._hosts is not None:
            hosts = exchange.headers.get(b"host", [])
            if len(hosts) != 1 or _host_name(hosts[0]) not in self._hosts:
                raise Refused("misdirected", "this server is not called by that name; see --allow-host")
        if self._admit_more is not None:
            self._admit_more(exchange.note, exchange.headers, state)

    async def _refuse(self, exchange: _Exchange, state: Mapping[str, Any], refused: Refused) -> None:
        note = exchange.note
        note.error = refused.kind
        self._watch.refused(refused.kind)
        if exchange.started:  # its answer cannot be taken back: the connection ends in the middle of it
            if (cut := state.get("cut")) is None:
                raise refused
            cut()
            return
        body = json.dumps(self._told(refused, note.id)).encode()
        more = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        if refused.status == 401:
            more["www-authenticate"] = 'Bearer realm="lepton"'
        if refused.retry_after_s is not None:
            more["retry-after"] = str(refused.retry_after_s)
        if refused.ends or not await exchange.drain():
            more["connection"] = "close"
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in more.items()]
        await exchange.send({"type": "http.response.start", "status": refused.status, "headers": pairs})
        await exchange.send({"type": "http.response.body", "body": body})

    def _tell(self, note: Note, seconds: float) -> None:
        self._watch.ended(note, seconds)
        if self._access is not None:
            self._access(json.dumps(note.to_dict(seconds), separators=(",", ":")))


class _Exchange:
    """One request and its answer: what has been read, and what has been sent."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, defaults: list[tuple[bytes, bytes]], watch: Watch
    ) -> None:
        self._receive, self._send, self._defaults, self._watch = receive, send, defaults, watch
        self.headers: dict[bytes, list[bytes]] = {}
        self.head_bytes = len(scope.get("raw_path", b"")) + len(scope["query_string"])
        for name, value in scope["headers"]:
            self.headers.setdefault(name, []).append(value)
            self.head_bytes += len(name) + len(value)
        given = self.headers.get(b"x-request-id", [b""])[0].decode("latin-1")
        request_id = given if _ID.fullmatch(given) else f"{_PROCESS}-{next(_NUMBERS):x}"
        client = scope.get("client")
        self.note = Note(request_id, scope["method"], scope["path"], client[0] if client else "")
        self.started = False
        self._body_ended = not (
            self.headers.get(b"content-length", [b"0"]) != [b"0"] or b"transfer-encoding" in self.headers
        )
        self._waits_for_leave = [value.lower() for value in self.headers.get(b"expect", [])] == [b"100-continue"]

    async def receive(self) -> Message:
        self._waits_for_leave = False  # uvicorn gives it with the first read
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.note.bytes_in += size
            self._watch.moved(self.note, size, 0)
            self._body_ended = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.note.status = True, message["status"]
            given = list(message.get("headers", []))
            named = {name for name, _ in given}
            defaults = [pair for pair in self._defaults if pair[0] not in named]
            message["headers"] = [*given, (b"x-request-id", self.note.id.encode()), *defaults]
        else:
            size = len(message.get("body", b""))
            self.note.bytes_out += size
            self._watch.moved(self.note, 0, size)
        await self._send(message)

    async def drain(self) -> bool:
        """Read on and throw away; whether the whole body has been read. Who was not told to send it has not sent it."""
        if self._body_ended:
            return True
        if self._waits_for_leave:
            return False
        most = self.note.bytes_in + LINGER_BYTES_MAX
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._body_ended and self.note.bytes_in < most:
                    if (await self.receive())["type"] == "http.disconnect":
                        return False
        except TimeoutError:
            return False
        return self._body_ended


def bearer(headers: Headers) -> str:
    """The token of the one Authorization header; "" when there is none."""
    values = headers.get(b"authorization", [])
    if len(values) != 1:
        return ""
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _host_name(host: bytes) -> str:
    """Without the port, in lower case; an IPv6 address keeps its brackets."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.partition(":")[0]
