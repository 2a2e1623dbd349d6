"""Cuts off the connections of the Flight port that cost and do nothing: gRPC gives no handle to them, the kernel does.

gRPC's server takes any number of connections, receives messages of any size before a handler sees a byte, and waits for ever until a client
reads. So a thread looks, several times a second, at the TCP connections of the port that this process holds (/proc/self/fd, TCP_INFO), and
at the calls that are under way, and shuts down a connection

    that has not authenticated a single request KNOWN_WITHIN_S after it began (garbage, half requests, slowloris)
    that sent more than UNASKED_BYTES_MAX that no request accounts for (a huge ticket, a batch that is too large)
    that lets a call wait for SLOW_S: it does not read what it asked for, or does not send what it announced
    that is one of too many that nobody knows

gRPC then ends its calls. Another client never notices; the one that is cut off connects again and goes on where it was, if it is ours.
Linux alone; a look costs 5 us a descriptor, and looks are at least LOOK_SHARE times that apart.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from leptonstore.daemon import bounds

_RECEIVED = struct.Struct("<Q")
_RECEIVED_AT = 128  # tcpi_bytes_received in struct tcp_info (linux/tcp.h)
log = logging.getLogger("lepton.daemon")


class Turn:
    """One call, and whose turn it is: ours while we work for it, the client's while it is to read, or to send."""

    __slots__ = ("allowed", "peer", "theirs_since")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.allowed = 0  # bytes that it may have sent ahead of what is accounted for: a batch of a put
        self.theirs_since: float | None = None

    def theirs(self) -> None:
        """The client is to read what it was given, or to send what it announced."""
        self.theirs_since = time.monotonic()

    def ours(self) -> None:
        """It has done so."""
        self.theirs_since = None


@dataclass
class _Connection:
    began: float
    received: int  # bytes, as the kernel counts them
    unasked: float = 0.0  # bytes of them that no request accounts for
    known: bool = False  # a request that came over it was authenticated


class Open(NamedTuple):
    """A TCP connection of ours."""

    fd: int
    peer: str
    received: int


class Connections:
    """Of one port, from `watch` to `close`. Any thread. refused: is told why one was cut off, in a word."""

    def __init__(self, refused: Callable[[str], None] | None = None, look_s: float = bounds.LOOK_S) -> None:
        self.port, self._refused, self._look_s = 0, refused or (lambda why: None), look_s
        self._guard = threading.Lock()
        self._open: dict[str, _Connection] = {}
        self._turns: set[Turn] = set()
        self._known: set[str] = set()  # peers that were authenticated before they were seen
        self._credits: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lepton-connections", daemon=True)
        self.busy: Callable[[], bool] = lambda: False  # whether others wait for places

    def watch(self, port: int) -> None:
        """Begin to look after that port."""
        self.port = port
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    # -- what the server tells -----------------------------------------------------------------------------------------

    def began(self, peer: str) -> Turn:
        """A call came from `peer`, as gRPC names it; `ended` has to follow."""
        turn = Turn(peer_of(peer))
        with self._guard:
            self._turns.add(turn)
        return turn

    def ended(self, turn: Turn) -> None:
        """The call is over."""
        with self._guard:
            self._turns.discard(turn)

    def known(self, turn: Turn) -> None:
        """Its credential was valid."""
        with self._guard:
            connection = self._open.get(turn.peer)
            if connection is not None:
                connection.known = True
            else:
                self._known.add(turn.peer)

    def account(self, turn: Turn, size: int) -> None:
        """A request of so many bytes, or a part of one, was received and is in order."""
        with self._guard:
            self._credits[turn.peer] = self._credits.get(turn.peer, 0) + size

    # -- looking -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = self._look_s
        while not self._ended.wait(wait):
            began = time.monotonic()
            try:
                self.look(began)
            except Exception:
                log.exception("looking after connections failed")
            wait = max(self._look_s, bounds.LOOK_SHARE * (time.monotonic() - began))

    def look(self, now: float) -> None:
        """Once: cut off what has to be."""
        there = {one.peer: one for one in open_connections(self.port)}
        with self._guard:
            for peer in self._open.keys() - there.keys():
                del self._open[peer]
            credits, self._credits = self._credits, {}
            allowed: Counter[str] = Counter()
            for turn in self._turns:
                allowed[turn.peer] += turn.allowed
            condemned = {}
            for peer, one in there.items():
                if why := self._judged(one, credits.get(peer, 0), bounds.UNASKED_BYTES_MAX + allowed[peer], now):
                    condemned[peer] = why
            limit = bounds.SLOW_BUSY_S if self.busy() else bounds.SLOW_S
            for turn in self._turns:
                since = turn.theirs_since
                if since is not None and now - since > limit:
                    condemned.setdefault(turn.peer, "slow")
            unknown = [peer for peer, one in self._open.items() if not one.known]
            for peer in unknown[: max(0, len(unknown) - bounds.UNKNOWN_MAX)]:  # those that began first
                condemned.setdefault(peer, "too many")
            self._known.clear()
        for peer, why in condemned.items():
            if peer in there and shut(there[peer].fd, peer):
                log.warning("the connection of %s is cut off: %s", peer, why)
                self._refused(why)

    def _judged(self, one: Open, credit: int, allowed: int, now: float) -> str:
        """Under the guard. Why it is to be cut off; empty when it is not."""
        connection = self._open.get(one.peer)
        if connection is None:
            connection = self._open[one.peer] = _Connection(now, 0, known=one.peer in self._known)
        arrived = one.received - connection.received
        connection.received = one.received
        # What is accounted for in this moment may be counted as received only at the next look: so it may run ahead, too.
        connection.unasked = max(float(-bounds.PUT_BATCH_BYTES_MAX), connection.unasked + arrived - credit)
        if connection.unasked > allowed:
            return "too large"
        if (
            connection.unasked > 0
        ):  # what HTTP/2 itself takes (headers, windows that open while we send) is forgiven at a rate
            connection.unasked = max(0.0, connection.unasked - bounds.UNASKED_BYTES_PER_S * self._look_s)
        if not connection.known and now - connection.began > bounds.KNOWN_WITHIN_S:
            return "silent"
        return ""

    def cut_all(self) -> None:
        """End every connection of the port."""
        for one in open_connections(self.port):
            shut(one.fd, one.peer)


def open_connections(port: int) -> Iterator[Open]:
    """The connections to local port `port` that this process holds. (Descriptors come and go meanwhile: what is odd is left out.)"""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError, ValueError):
            one = socket.socket(fileno=int(name))
            try:
                if one.type != socket.SOCK_STREAM or one.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if one.getsockname()[1] != port:
                    continue
                peer = _named(one.getpeername())
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                received = _RECEIVED.unpack_from(info, _RECEIVED_AT)[0] if len(info) >= _RECEIVED_AT + 8 else 0
                yield Open(int(name), peer, received)
            finally:
                one.detach()


def shut(fd: int, peer: str) -> bool:
    """Shut down the connection, if `fd` is still that of `peer`; gRPC closes it. Whether it was done."""
    try:
        copy = os.dup(fd)  # stays what it is, whatever happens to `fd`
    except OSError:
        return False
    try:
        one = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return False
    with one, suppress(OSError):
        if _named(one.getpeername()) == peer:
            one.shutdown(socket.SHUT_RDWR)
            return True
    return False


def _named(address: tuple[object, ...]) -> str:
    host, port = str(address[0]), address[1]
    return f"{host.removeprefix('::ffff:')}:{port}"


def peer_of(grpc: str) -> str:
    """gRPC's "ipv4:127.0.0.1:4711" or "ipv6:%5B::1%5D:4711" -> "127.0.0.1:4711", "::1:4711"."""
    host, _, port = unquote(grpc).partition(":")[2].rpartition(":")
    return f"{host.strip('[]').removeprefix('::ffff:')}:{port}"
