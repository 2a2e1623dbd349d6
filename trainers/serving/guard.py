"""Guard: what stands between the network and the routes. Every request passes it, and is answered and logged by it exactly once.

It gives a request its id, holds headers and Host to the limits, asks for a token, turns `Refused` (and anything else that is raised)
into the one JSON error there is, reads what is left of a refused body so that its sender sees the answer, counts, and writes the log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainers.serving.limits import HEAD_BYTES_MAX, LINGER_BYTES_MAX, LINGER_S, REQUEST_ID_CHARS_MAX, RETRY_AFTER_S
from trainers.serving.metrics import Metrics
from trainers.serving.refusal import TYPES, Refused
from trainers.serving.tokens import TokenFile

ROUTES = ("/predict", "/schema", "/metrics", "/healthz", "/readyz")
OPEN_ROUTES = ("/healthz", "/readyz")  # what probes of an orchestrator ask, who have no token; they tell nothing
CLIENT_GONE = 499  # in the log: nobody was there to be answered (nginx's number)
LOGGED_CHARS_MAX = 200  # of a path
_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{REQUEST_ID_CHARS_MAX}}}")
# An id names a request in the log and is no secret: a call of the system for each would hand the interpreter to the model's thread.
_PROCESS, _NUMBERS = secrets.token_hex(4), itertools.count(1)
_BY_STATUS = {404: "not_found", 405: "method_not_allowed"}

log = logging.getLogger("lepton.serve")
Headers = Mapping[bytes, list[bytes]]


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
    """An ASGI application around another. hosts: names by which this server may be called; None for any.

    tokens: None lets everybody in. access: is given a line of the log for every request; None for no log.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        tokens: TokenFile | None,
        hosts: frozenset[str] | None,
        access: Callable[[str], None] | None,
    ) -> None:
        self._app, self._metrics, self._tokens, self._hosts, self._access = app, metrics, tokens, hosts, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # uvicorn is told that there are neither web sockets nor a lifespan
            raise RuntimeError(f"a {scope['type']} connection")
        started = time.monotonic()
        exchange = _Exchange(scope, receive, send)
        self._metrics.in_flight.inc()
        try:
            await self._answer(scope, exchange)
        finally:
            self._metrics.in_flight.dec()
            self._tell(exchange.note, time.monotonic() - started)

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            self._admit(exchange)
            scope["app"] = self  # so that the router raises for what it does not know
            scope.setdefault("state", {})["note"] = exchange.note
            await self._app(scope, exchange.receive, exchange.send)
        except Refused as refused:
            await self._refuse(exchange, refused)
        except HTTPException as error:
            kind = _BY_STATUS.get(error.status_code, "malformed")
            allowed = dict(error.headers or {}).get("Allow", "")
            said = (
                f"{exchange.note.method} is not for this path; use {allowed}"
                if allowed
                else f"there are {', '.join(ROUTES)}"
            )
            await self._refuse(exchange, Refused(kind, said), {"allow": allowed} if allowed else {})
        except ClientDisconnect:
            exchange.note.error = "client_gone"
        except asyncio.CancelledError:  # drain_s is over: what is still under way is told so
            if exchange.started:
                raise
            await self._refuse(exchange, Refused("draining", "this server has stopped", RETRY_AFTER_S))
        except Exception:
            log.exception("request %s failed", exchange.note.id)
            if exchange.started:  # its answer cannot be taken back: the connection ends in the middle of it
                raise
            await self._refuse(exchange, Refused("internal", "the model could not answer; the server's log says why"))

    def _admit(self, exchange: _Exchange) -> None:
        headers, note = exchange.headers, exchange.note
        if exchange.head_bytes > HEAD_BYTES_MAX:
            raise Refused("headers_too_large", f"the headers are larger than {HEAD_BYTES_MAX:,} bytes")
        if self._hosts is not None:
            hosts = headers.get(b"host", [])
            if len(hosts) != 1 or _host_name(hosts[0]) not in self._hosts:
                raise Refused("misdirected", "this server is not called by that name; see --allow-host")
        if self._tokens is not None and note.path not in OPEN_ROUTES:
            note.token = self._tokens.name_of(_bearer(headers))
            if note.token is None:
                raise Refused("unauthorized", "a valid token is needed: authorization: Bearer TOKEN")

    async def _refuse(self, exchange: _Exchange, refused: Refused, headers: Mapping[str, str] | None = None) -> None:
        note = exchange.note
        note.error = refused.kind
        self._metrics.refused.labels(refused.kind).inc()
        told = {"type": refused.kind, "message": refused.message, "request_id": note.id}
        body = json.dumps({"error": told}).encode()
        more = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        if refused.kind == "unauthorized":
            more["www-authenticate"] = 'Bearer realm="lepton"'
        if refused.retry_after_s is not None:
            more["retry-after"] = str(refused.retry_after_s)
        # Who is slow is not waited for again; who sends what is not HTTP as we know it may mean something else by the rest.
        ends = refused.kind in ("timeout", "headers_too_large", "misdirected", "draining")
        if ends or not await exchange.drain():
            more["connection"] = "close"
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in more.items()]
        await exchange.send({"type": "http.response.start", "status": TYPES[refused.kind], "headers": pairs})
        await exchange.send({"type": "http.response.body", "body": body})

    def _tell(self, note: Note, seconds: float) -> None:
        route = note.path if note.path in ROUTES else "other"
        self._metrics.requests.labels(route, str(note.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        self._metrics.body_bytes.labels("in").inc(note.bytes_in)
        self._metrics.body_bytes.labels("out").inc(note.bytes_out)
        if self._access is not None:
            self._access(json.dumps(note.to_dict(seconds), separators=(",", ":")))


class _Exchange:
    """One request and its answer: what has been read, and what has been sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
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
            self.note.bytes_in += len(message.get("body", b""))
            self._body_ended = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.note.status = True, message["status"]
            message["headers"] = [
                *message.get("headers", []),
                (b"x-request-id", self.note.id.encode()),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
            ]
        else:
            self.note.bytes_out += len(message.get("body", b""))
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


def _bearer(headers: Headers) -> str:
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
