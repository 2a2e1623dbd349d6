"""WebServer: an ASGI application behind HTTP/1.1 in this process, on a port that is bound at once, with a stop in two steps.

begin_to_stop, SIGTERM     `on_stopping` is called (readiness says no); after drain_wait_s no connections are taken; requests under way are
                           answered, for at most drain_s; a second signal ends at once
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import TypeVar

import uvicorn
from starlette.types import ASGIApp

from leptonstore.errors import BadInput, LeptonWarning, SourceError
from leptonstore.web.limits import FILES_BESIDE_CONNECTIONS, HEAD_BYTES_MAX, REFUSED_CONNECTIONS_MAX, WebLimits
from leptonstore.web.protocol import bounded_protocol
from leptonstore.web.refusal import Told, nested

Limits = TypeVar("Limits", bound=WebLimits)


class WebServer:
    """Binds its port when it is made. `run` blocks; `start` and `stop` run it in a thread of its own."""

    def __init__(self, limits: WebLimits, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """port: 0 takes a free one. tls: a server's context; certificates that are loaded into it later are for new connections.
        Raises BadInput for an address that is in use or not this machine's."""
        self._limits, self._tls = limits, tls
        self._socket = bound(host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def run(
        self,
        app: ASGIApp,
        *,
        refused: Callable[[str], object],
        told: Told = nested,
        on_ready: Callable[[], None] = lambda: None,
        on_stopping: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until SIGTERM, SIGINT (where this is the main thread) or `begin_to_stop`. `refused`, `told`: as bounded_protocol takes
        them. on_ready: called once, when requests are answered."""
        limits = self._limits
        config = uvicorn.Config(
            app,
            http=bounded_protocol(limits, refused, told),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            timeout_keep_alive=limits.idle_s,  # type: ignore[arg-type]  # goes into call_later, which takes floats
            timeout_graceful_shutdown=limits.drain_s,  # type: ignore[arg-type]
        )
        self._server = _Server(config, limits, self._tls, on_ready, on_stopping)
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def close(self) -> None:
        """Give the port up; for one that was never run."""
        self._socket.close()

    def begin_to_stop(self) -> None:
        """As SIGTERM; from any thread. Returns at once."""
        if self._server is not None:
            self._server.begin_to_stop()

    def start(self, run: Callable[[Callable[[], None]], None]) -> None:
        """Call `run` (which calls this one's `run`) in a thread, and wait until it has called what it is given. Raises what it raises."""
        started = threading.Event()

        def body() -> None:
            try:
                run(started.set)
            except BaseException as error:
                self._failure = error
            finally:
                started.set()

        self._thread = threading.Thread(target=body, name="lepton-http", daemon=True)
        self._thread.start()
        started.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self, timeout_s: float | None = None) -> None:
        """Begin to stop, and wait for the thread that `start` made. Raises what has ended it."""
        self.begin_to_stop()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._failure is not None:
            raise self._failure


class _Server(uvicorn.Server):
    """uvicorn's, which stops in two steps, ends with code 0, says when it is ready, and bounds the time of a TLS handshake."""

    def __init__(
        self,
        config: uvicorn.Config,
        limits: WebLimits,
        tls: ssl.SSLContext | None,
        on_ready: Callable[[], None],
        on_stopping: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._limits, self._tls, self._on_ready, self._on_stopping = limits, tls, on_ready, on_stopping
        self._stop_at: float | None = None

    def begin_to_stop(self) -> None:
        """From any thread, and from a signal handler."""
        self._on_stopping()
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._limits.drain_wait_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's, which raises the signal again in the end, for the handlers of whoever called.
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
        self.begin_to_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Not uvicorn's, which leaves a handshake 60 s: no protocol counts its connection yet.
        loop = asyncio.get_running_loop()
        await self.lifespan.startup()

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return made

        seconds = None if self._tls is None else self._limits.head_s
        self.servers = [
            await loop.create_server(
                protocol, sock=each, ssl=self._tls, backlog=self.config.backlog, ssl_handshake_timeout=seconds
            )
            for each in sockets or []
        ]
        self.started = True
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return True
        return await super().on_tick(counter)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there. Raises BadInput for a name that is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BadInput(f"there is no host {host!r} to listen on: {error}") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """A server's, of files in PEM. Raises SourceError when they are no pair."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SourceError(f"{certificate} and {key} are no certificate with its key: {error}", certificate) from None
    return context


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises BadInput when it is in use."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    made = socket.socket(family, kind, proto)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise BadInput(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from None
    return made


def with_files(limits: Limits) -> Limits:
    """Let this process open as many files as there may be connections; fewer connections where it may not."""
    wanted = limits.connections_max + REFUSED_CONNECTIONS_MAX + FILES_BESIDE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    fewer = max(1, soft - REFUSED_CONNECTIONS_MAX - FILES_BESIDE_CONNECTIONS)
    if fewer >= limits.connections_max:
        return limits
    warnings.warn(
        f"this process may open {soft:,} files: connections are limited to {fewer:,}", LeptonWarning, stacklevel=3
    )
    return replace(limits, connections_max=fewer)
