"""A client of plain sockets for the tests of serving: nothing between the bytes and the server that could mend a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0  # of one exchange: only a hanging server takes so long


@dataclass(frozen=True)
class Reply:
    """An answer: status, headers with names in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The type of the error."""
        kind: str = self.json()["error"]["type"]
        return kind


def request_bytes(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, close: bool = True
) -> bytes:
    told = {"host": "localhost", **(headers or {})}
    if body:
        told.setdefault("content-length", str(len(body)))
    if close:
        told["connection"] = "close"
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def parse_reply(data: bytes) -> Reply:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert len(body) == int(headers["content-length"]), (len(body), headers)
    return Reply(int(first.split(" ")[1]), headers, body)


def exchange(url: str, data: bytes) -> Reply:
    """Send bytes, and read until the server closes."""
    reply = raw_exchange(url, data)
    return parse_reply(reply)


def raw_exchange(url: str, data: bytes) -> bytes:
    """As `exchange`, as bytes; empty when the server closed without a word."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), TIMEOUT_S) as connection:
        with contextlib.suppress(ConnectionError):  # it answered before it had read everything
            connection.sendall(data)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)


def post(url: str, body: bytes, kind: str = "application/json", **headers: str) -> Reply:
    """POST /predict."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return exchange(url, request_bytes("POST", "/predict", body, {"content-type": kind, **told}))


def get(url: str, path: str, **headers: str) -> Reply:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return exchange(url, request_bytes("GET", path, headers=told))


def metrics(url: str) -> dict[str, float]:
    """What /metrics says: name with labels -> value."""
    lines = get(url, "/metrics").body.decode().split("\n")
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] not in "#")}


def wait_for_metric(url: str, name: str, value: float) -> None:
    """Ask until it has this value. The server answers while its model is busy."""
    until = time.monotonic() + TIMEOUT_S
    while (found := metrics(url)[name]) != value:
        assert time.monotonic() < until, f"{name} is {found}, not {value}"


async def exchange_later(url: str, data: bytes) -> Reply:
    """As `exchange`, for many at a time."""
    where = urlsplit(url)
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(data)
        await writer.drain()
        found = await reader.read(-1)
        writer.close()
        return parse_reply(found)


def slowly(url: str, first: bytes, part: bytes) -> bytes:
    """Send `first`, then `part` again and again as long as the server takes it: what it says in the end."""
    where = urlsplit(url)
    found = b""
    with socket.create_connection((where.hostname, where.port), TIMEOUT_S) as connection:
        connection.sendall(first)
        connection.settimeout(0.02)
        while True:
            try:
                piece = connection.recv(65_536)
            except TimeoutError:
                with contextlib.suppress(ConnectionError):  # what it said before it closed is read next
                    connection.sendall(part)
                continue
            except ConnectionError:
                return found
            if not piece:
                return found
            found += piece
