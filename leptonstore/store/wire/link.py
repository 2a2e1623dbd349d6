"""A client's link to the daemons of a store: which of them is asked, over what, how often again, and for how long.

    request -> the daemon that answered last -> no answer: the next one (of the URL, then the members that a daemon told)
                                             -> all were asked, or one is too busy: a pause that grows, until the time is over

Invariants:
- A daemon is greeted before it is asked anything else: it must speak this protocol and serve the very store that was opened.
- Everything that waits has a limit in seconds. What a daemon answers with an error of its own is told at once and not asked again,
  except TooBusy.
- Reads, and what is named by a digest or an id, may be asked for again: the same request twice does what it does once.
- Connections are of a process. A forked child makes its own, over HTTP when its parent had used Flight.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import (
    BadInput,
    FormatDamaged,
    FormatTooNew,
    NotAuthenticated,
    StoreMissing,
    TierUnavailable,
    TooBusy,
)
from leptonstore.store.wire import messages
from leptonstore.store.wire.address import Address, Host, is_served, parse_address, parse_host
from leptonstore.store.wire.credentials import Credentials, credentials_for
from leptonstore.store.wire.plane import Plane, Unreached

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")
_HTTP_BESIDE = 1  # a daemon's HTTP port is the next one, where it was never asked which it is
Ask = Callable[[int], bytes]
_links: weakref.WeakSet[Link] = weakref.WeakSet()


class Link:
    """The daemons of one store. Any thread; after a fork the child connects anew."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._hosts = list(address.hosts)
        self._planes: dict[Host, Plane] = {}
        self._http: dict[Host, Host] = {}
        self._shown: dict[Host, Credentials] = {}  # what the connection to a host was made with
        self._store_id, self._greeting = "", dict[str, Any]()
        self.hello: Mapping[str, Any] = {}  # what the daemon said that was greeted last
        self._lock = threading.RLock()
        _links.add(self)

    @property
    def url(self) -> str:
        """The store's URL."""
        return self.address.url

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Whom to ask, the one that answered last first."""
        return tuple(self._hosts)

    def open(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Greet a daemon, with `arguments`; what it says of the store. Raises TierUnavailable within WIRE_OPEN_S and a try of each
        host, StoreMissing, FormatTooNew, NotAuthenticated."""
        self._greeting = dict(arguments)
        self._tried(lambda host: self._plane(host), limits.WIRE_OPEN_S)
        return self.hello

    def request(self, op: str, arguments: Mapping[str, Any] | None = None, payload: Buffer = b"") -> bytes:
        """An encoded request to the store that was opened, and to no other: a connection outlives the daemon at its other end."""
        return messages.encode(op, {**(arguments or {}), "of": self._store_id}, payload)

    # -- requests ------------------------------------------------------------------------------------------------

    def ask(
        self,
        op: str,
        arguments: Mapping[str, Any] | None = None,
        payload: Buffer = b"",
        host: Host | None = None,
        patience_s: float | None = None,
    ) -> bytes:
        """The bytes that an action answers. host: ask this one alone. Raises TierUnavailable after `patience_s` (None: WIRE_RETRY_S),
        TooBusy, or what it answers."""
        request = self.request(op, arguments, payload)
        patience_s = limits.WIRE_RETRY_S if patience_s is None else patience_s
        return self._tried(lambda host: self._plane(host).act(request, limits.WIRE_CALL_S), patience_s, host)

    def act(
        self,
        op: str,
        arguments: Mapping[str, Any] | None = None,
        payload: Buffer = b"",
        host: Host | None = None,
        patience_s: float | None = None,
    ) -> dict[str, Any]:
        """`ask`, where the answer is a JSON object. Raises FormatDamaged when it is none."""
        return _object(self.ask(op, arguments, payload, host, patience_s), f"the answer of {self.url} to {op!r}")

    def stream(self, request: Ask, host: Host | None = None) -> Iterator[pa.RecordBatch]:
        """The batches of a "get"; where it breaks off, the rest is asked for again: `request(rows)` is the request for what follows the
        first so many rows. Raises as `ask`."""
        rows = 0
        waiting = _Patience(limits.WIRE_RETRY_S)
        while True:
            asked = host or self._hosts[0]
            shown = self._shown.get(asked)
            try:
                for batch in self._plane(asked).stream(request(rows), limits.WIRE_CALL_S):
                    rows += batch.num_rows
                    yield batch
                    waiting = _Patience(limits.WIRE_RETRY_S)
                return
            except (Unreached, TooBusy, NotAuthenticated) as error:
                self._failed(asked, error, waiting, host is not None, shown)

    def send(
        self, op: str, arguments: Mapping[str, Any], session: str, batches: Sequence[pa.RecordBatch], host: Host
    ) -> Mapping[str, Any]:
        """A "put" to the daemon that has the session. Sent again when the answer is lost. Raises as `ask`."""
        request = self.request(op, arguments)
        return self._tried(
            lambda host: self._plane(host).send(request, session, batches, limits.WIRE_CALL_S),
            limits.WIRE_RETRY_S,
            host,
        )

    # -- whom to ask ---------------------------------------------------------------------------------------------

    def _tried(self, work: Callable[[Host], _T], patience_s: float, only: Host | None = None) -> _T:
        waiting = _Patience(patience_s)
        while True:
            host = only or self._hosts[0]
            shown = self._shown.get(host)
            try:
                return work(host)
            except (Unreached, TooBusy, NotAuthenticated) as error:
                self._failed(host, error, waiting, only is not None, shown)

    def _failed(
        self,
        host: Host,
        error: Unreached | TooBusy | NotAuthenticated,
        waiting: _Patience,
        only: bool,
        shown: Credentials | None,
    ) -> None:
        """Go on to the next host, or wait; raises when the time is over. shown: the credentials that the host was asked with."""
        if isinstance(error, NotAuthenticated):
            now = credentials_for(host, self.address.tls)
            if (shown or self._shown.get(host)) == now:
                raise error
            if self._shown.get(host) != now:  # else another thread has made a new connection already
                self._drop(host)
            return
        if isinstance(error, Unreached):
            self._drop(host)
        waiting.asked.add(host)
        if not only:
            with self._lock:
                if self._hosts[0] == host:
                    self._hosts.append(self._hosts.pop(0))
            if self._hosts[0] not in waiting.asked:
                return
        waiting.asked.clear()
        if waiting.pause(error.retry_after_s if isinstance(error, TooBusy) else 0.0):
            return
        if isinstance(error, TooBusy):
            raise error
        raise TierUnavailable(
            f"no daemon answers for {self.url} ({error}): see that `lepton serve` runs there", self.url
        ) from None

    def _plane(self, host: Host) -> Plane:
        """What carries requests to a daemon that was greeted. Raises Unreached, and as `open`."""
        plane = self._planes.get(host)
        if plane is not None:
            return plane
        made = self._connected(host)
        try:
            told = _object(
                made.act(messages.encode("hello", self._greeting), limits.WIRE_OPEN_S),
                f"the greeting of {host}",
            )
            self._greeted(host, told)
        except BaseException:
            made.close()
            raise
        with self._lock:
            there = self._planes.setdefault(host, made)
        if there is not made:
            made.close()
        return there

    def _connected(self, host: Host) -> Plane:
        from leptonstore.store.wire import flight_plane

        credentials = self._shown[host] = credentials_for(host, self.address.tls)
        if flight_plane.usable():
            # gRPC waits long, and says little, where nothing listens.
            try:
                socket.create_connection(host, limits.WIRE_CONNECT_S).close()
            except OSError as error:
                why = "no such host" if isinstance(error, socket.gaierror) else "nothing answers there"
                raise Unreached(f"{host}: {why}") from None
            return flight_plane.FlightPlane(host, self.address.tls, credentials)
        from leptonstore.store.wire.http_plane import HttpPlane

        return HttpPlane(self._http.get(host, Host(host.name, host.port + _HTTP_BESIDE)), self.address.tls, credentials)

    def _greeted(self, host: Host, told: Mapping[str, Any]) -> None:
        """Raises FormatTooNew, StoreMissing or FormatDamaged."""
        protocol, store = told.get("protocol"), told.get("store")
        if not isinstance(protocol, int) or not isinstance(store, dict) or not isinstance(store.get("id"), str):
            raise FormatDamaged(f"{host} answers, but not as a daemon of LeptonStore does")
        if protocol > messages.PROTOCOL:
            raise FormatTooNew(f"the daemon at {host} speaks protocol {protocol}: upgrade LeptonStore here")
        if store.get("name") != self.address.store:
            raise StoreMissing(
                f"{host} serves no store {self.address.store!r}; it serves {str(store.get('name'))[:100]!r}", self.url
            )
        if self._store_id and store["id"] != self._store_id:
            raise StoreMissing(
                f"{host} serves another store by now than the one that was opened at {self.url}", self.url
            )
        http = urllib.parse.urlsplit(str(told.get("http") or ""))
        with self._lock, contextlib.suppress(ValueError):
            if http.port:
                self._http[host] = Host(host.name, http.port)  # by the name that we know it by
        with self._lock:
            self._store_id, self.hello = store["id"], told
            for member in told.get("members") or ():
                for found in _hosts_of(member):
                    if found not in self._hosts and len(self._hosts) < limits.WIRE_HOSTS_MAX:
                        self._hosts.append(found)

    def _drop(self, host: Host) -> None:
        """Connect anew the next time: another daemon may listen there by then."""
        with self._lock:
            plane = self._planes.pop(host, None)
        if plane is not None:
            plane.close()

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of all connections; a later request makes new ones."""
        for host in list(self._planes):
            self._drop(host)

    def after_fork(self) -> None:
        """In a child process."""
        self._lock = threading.RLock()
        planes, self._planes = self._planes, {}
        for plane in planes.values():
            plane.abandon()


class _Patience:
    """How long to go on: pauses that double, half by chance, until the time is over."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._pause = limits.WIRE_BACKOFF_S
        self.asked: set[Host] = set()  # since the last pause

    def pause(self, least_s: float = 0.0) -> bool:
        """Wait; False, at once, when the time would be over."""
        pause = max(least_s, self._pause * (0.5 + random.random() / 2))
        if time.monotonic() + pause > self._end:
            return False
        time.sleep(pause)
        self._pause = min(2 * self._pause, limits.WIRE_BACKOFF_S_MAX)
        return True


def _hosts_of(member: Any) -> tuple[Host, ...]:
    """Where a member is that a daemon told: HOST:PORT, or a URL. Nothing for what is neither."""
    if not isinstance(member, str):
        return ()
    if is_served(member):
        with contextlib.suppress(BadInput):
            return parse_address(member).hosts
        return ()
    found = parse_host(member)
    return () if found is None else (found,)


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatDamaged(f"{what} is no JSON object")
    return found


def _after_fork() -> None:
    for link in list(_links):
        link.after_fork()


_links = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
