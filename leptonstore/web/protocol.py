"""uvicorn's HTTP/1.1 with bounds that it has not: numbers and times of connections, and errors as JSON.

uvicorn 0.54 (read in its source) waits for ever for the head of a first request, for the rest of a body whose answer has been sent, and for
a client that takes no bytes; it bounds a head only while it is incomplete, and answers what is not HTTP with text. All of it
is bounded here, per connection, with one timer each for what is read and what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from leptonstore.web.limits import READ_BYTES, REFUSED_CONNECTIONS_MAX, REFUSED_LINGER_S, RETRY_AFTER_S, WebLimits
from leptonstore.web.refusal import TYPES, Refused, Told, nested

_NO_LINGER = struct.pack("ii", 1, 0)


class _Timer:
    """One call, later, unless it is cancelled before. Starting it again while it runs gains no time."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], object]) -> None:
        if self._handle is None:
            self._handle = loop.call_later(seconds, call)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def bounded_protocol(limits: WebLimits, refused: Callable[[str], object], told: Told = nested) -> type[BoundedProtocol]:
    """The class that uvicorn is to make for each connection. refused: is told the type of what is refused here. told: of its errors."""
    members = {"limits": limits, "refused": staticmethod(refused), "told": staticmethod(told)}
    return type("BoundedProtocol", (BoundedProtocol,), members)


class BoundedProtocol(H11Protocol):
    """One connection. A request's body and answer have their times in guard.py and bodies.py; here are the others.

    The scope's state has "cut": call it to end a connection in the middle of an answer, which the client then sees; and with TLS
    "certificate": the client's that was verified, as ssl.SSLSocket.getpeercert tells it.
    """

    limits: ClassVar[WebLimits]
    refused: ClassVar[Callable[[str], object]]
    told: ClassVar[Told]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        self._reading, self._writing, self._closing, self._turned_away = _Timer(), _Timer(), _Timer(), False
        others = len(self.connections)
        if others >= self.limits.connections_max + REFUSED_CONNECTIONS_MAX:
            self._turned_away, self.transport = True, transport
            transport.abort()
            return
        if hasattr(transport, "max_size"):  # asyncio's own reads 256 KiB at a time, which many connections add up
            transport.max_size = READ_BYTES
        super().connection_made(transport)
        if others >= self.limits.connections_max:
            self._turned_away = True
            type(self).refused("busy")
            transport.write(self._whole_answer("busy", "too many connections are open; try again later"))
            # Closed at once, with bytes of it unread, the client would see a reset and no answer.
            self.loop.call_later(REFUSED_LINGER_S, transport.close)
            return
        self.app_state = {**self.app_state, "cut": self._cut}
        secured = transport.get_extra_info("ssl_object")
        if secured is not None and (certificate := secured.getpeercert()):
            self.app_state["certificate"] = certificate
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._turned_away:
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
        else:
            self._reading.cancel()

    def on_response_complete(self) -> None:
        self._reading.cancel()
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._reading, self._writing, self._closing):
            timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing.start(self.loop, self.limits.write_s, self._reset)

    def resume_writing(self) -> None:
        self._writing.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._end("malformed", "this is not HTTP/1.1, or its headers are too large")

    def _expect_head(self) -> None:
        """From now on, or from when it was first expected: bytes that trickle in gain no time."""
        if not self.transport.is_closing():
            self._reading.start(self.loop, self.limits.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._end("timeout", f"no whole request arrived within {self.limits.head_s:g} s")

    def _end(self, kind: str, message: str) -> None:
        """Answer where an answer still has a place, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what it is still about to send has nobody to read it
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            type(self).refused(kind)
            self.transport.write(self._whole_answer(kind, message))
        self._close()

    def _close(self) -> None:
        """Once what was written is gone; a client that does not take it (up to 64 KiB: no pause of writing tells of them) is cut off."""
        self._closing.start(self.loop, self.limits.write_s, self._reset)
        self.transport.close()

    def _cut(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
        self._reset()

    def _reset(self) -> None:
        """End it at once, with what the kernel still holds for a client that does not read (some MiB, which `abort` would leave there)."""
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _whole_answer(self, kind: str, message: str) -> bytes:
        body = json.dumps(type(self).told(Refused(kind, message), None))
        retry = [f"retry-after: {RETRY_AFTER_S}"] if kind == "busy" else []
        kind_and_length = ["content-type: application/json", f"content-length: {len(body)}"]
        lines = [f"HTTP/1.1 {TYPES[kind]} {kind}", *kind_and_length, *retry, "connection: close", "", body]
        return "\r\n".join(lines).encode()
