"""ModelServer: a deployed model behind HTTP, in this process. `lepton deploy serve` is `run`; in Python it is a context manager.

    threads     the event loop (sockets, small bodies) | the model (trainers.serving.batcher) | DECODE_THREADS for images and large bodies
    stopping    SIGTERM or `stop`: /readyz says 503; after drain_wait_s no connections are taken; requests under way are answered, for at
                most drain_s; a second signal ends at once

Loopback only, unless `allow_remote` is said and tokens are given. A server keeps the version of the model that it was started with.
"""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType

import torch

from leptonstore.errors import BadInput, LeptonWarning, MissingExtra, SourceError

try:
    import uvicorn

    from trainers.serving.app import Routes
    from trainers.serving.http import bounded_protocol
except ModuleNotFoundError as error:
    raise MissingExtra("serving a model", "serve", error.name or "") from None

from trainers.serving.batcher import Batcher
from trainers.serving.guard import Guard
from trainers.serving.limits import DECODE_THREADS, HEAD_BYTES_MAX, REFUSED_CONNECTIONS_MAX, ServeLimits
from trainers.serving.metrics import Metrics
from trainers.serving.model import Served
from trainers.serving.steady import Steady
from trainers.serving.tokens import TokenFile

FILES_BESIDE_CONNECTIONS = 256  # open files of Python, torch and the store
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class ModelServer:
    """A model at `url`. `run` blocks; `with ModelServer(...) as server` runs it in a thread of its own."""

    def __init__(
        self,
        model: Served,
        limits: ServeLimits | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token_file: str | Path | None = None,
        allow_remote: bool = False,
        allow_hosts: Iterable[str] = (),
        tls: tuple[str, str] | None = None,
        threads: int | None = None,
        access: Callable[[str], None] | None = None,
    ) -> None:
        """Binds the port; nothing is answered before `run`.

        port: 0 takes a free one. allow_hosts: further names in Host by which a loopback server may be called (any name goes
        for one that listens wider). tls: (certificate chain, private key), files in PEM. threads: of torch; its own choice by default.
        access: is given one line of JSON for every request.
        Raises BadInput (an address that may not be listened to, or is in use), SourceError (the token file, the certificate).
        """
        self._model = model
        self._threads, self._access, self._tls = threads, access, tls
        self._tokens = None if token_file is None else TokenFile(token_file)
        loopback = _is_loopback(host)
        if not loopback and not (allow_remote and self._tokens is not None):
            raise BadInput(
                f"other machines can reach {host}: give --allow-remote and --token-file, or listen on 127.0.0.1"
            )
        if not loopback and tls is None:
            warnings.warn("tokens and data travel in clear: give --tls-cert and --tls-key", LeptonWarning, stacklevel=2)
        if tls is not None:
            _require_key_pair(*tls)
        self._hosts = LOOPBACK_NAMES | {name.lower() for name in allow_hosts} if loopback else None
        self._limits = _with_files(limits or ServeLimits())
        self._socket = _bound(host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM, SIGINT or `stop`. on_ready: called once, when requests are answered."""
        limits, metrics = self._limits, Metrics(self._model.name, self._model.commit)

        def measured() -> Steady:
            if self._threads is not None:
                torch.set_num_threads(self._threads)  # of the thread that is the batcher's
            return Steady(self._model.program, self._model.input, limits.batch_rows)

        batcher = Batcher(
            measured,
            batch_rows=limits.batch_rows,
            wait_s=limits.wait_ms / 1e3,
            queue_rows_max=limits.queue_rows_max,
            on_batch=metrics.on_batch,
        )
        metrics.queue_rows.set_function(lambda: float(batcher.waiting_rows))
        try:
            with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="lepton-decode") as pool:
                routes = Routes(self._model, batcher, metrics, limits, pool)
                guard = Guard(routes.router, metrics, tokens=self._tokens, hosts=self._hosts, access=self._access)
                self._server = _Server(self._config(guard, metrics), limits.drain_wait_s, routes, on_ready)
                self._server.run(sockets=[self._socket])
        finally:
            batcher.close()
            self._socket.close()

    def stop(self) -> None:
        """As SIGTERM; from any thread. Returns at once."""
        if self._server is not None:
            self._server.begin_to_stop()

    def __enter__(self) -> ModelServer:
        started = threading.Event()
        self._thread = threading.Thread(target=self._run_in_thread, args=(started,), name="lepton-serve", daemon=True)
        self._thread.start()
        started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        assert self._thread is not None
        self._thread.join()

    def _run_in_thread(self, started: threading.Event) -> None:
        try:
            self.run(started.set)
        except BaseException as error:
            self._failure = error
        finally:
            started.set()

    def _config(self, app: Guard, metrics: Metrics) -> uvicorn.Config:
        limits = self._limits
        return uvicorn.Config(
            app,
            http=bounded_protocol(limits, metrics),
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
            ssl_certfile=self._tls[0] if self._tls else None,
            ssl_keyfile=self._tls[1] if self._tls else None,
        )


class _Server(uvicorn.Server):
    """uvicorn's, which stops in two steps, ends with code 0, and says when it is ready."""

    def __init__(
        self, config: uvicorn.Config, drain_wait_s: float, routes: Routes, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain_wait_s, self._routes, self._on_ready = drain_wait_s, routes, on_ready
        self._stop_at: float | None = None

    def begin_to_stop(self) -> None:
        """From any thread, and from a signal handler."""
        self._routes.draining = True
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._drain_wait_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's, which raises the signal again in the end, for the handlers of whoever called.
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
        self.begin_to_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return True
        return await super().on_tick(counter)


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BadInput(f"there is no host {host!r} to listen on: {error}") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _require_key_pair(certificate: str, key: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SourceError(f"{certificate} and {key} are no certificate with its key: {error}", certificate) from None


def _bound(host: str, port: int) -> socket.socket:
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    made = socket.socket(family, kind, proto)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise BadInput(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    return made


def _with_files(limits: ServeLimits) -> ServeLimits:
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
