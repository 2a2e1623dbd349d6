"""ModelServer: a deployed model behind HTTP, in this process. `lepton deploy serve` is `run`; in Python it is a context manager.

    threads     the event loop (sockets, small bodies) | the model (trainers.serving.batcher) | DECODE_THREADS for images and large bodies
    stopping    SIGTERM or `stop`: /readyz says 503; after drain_wait_s no connections are taken; requests under way are answered, for at
                most drain_s; a second signal ends at once

Loopback only, unless `allow_remote` is said and tokens are given. A server keeps the version of the model that it was started with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from leptonstore.errors import BadInput, LeptonWarning, MissingExtra

try:
    from leptonstore.web.guard import LOOPBACK_NAMES, Guard, Headers, Note, bearer
    from leptonstore.web.refusal import Refused
    from leptonstore.web.server import WebServer, is_loopback, tls_context, with_files
    from trainers.serving.app import OPEN_ROUTES, Routes
except ModuleNotFoundError as error:
    raise MissingExtra("serving a model", "serve", error.name or "") from None

from trainers.serving.batcher import Batcher
from trainers.serving.limits import DECODE_THREADS, ServeLimits
from trainers.serving.metrics import ROUTES, Metrics
from trainers.serving.model import Served
from trainers.serving.steady import Steady
from trainers.serving.tokens import TokenFile


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
        self._threads, self._access = threads, access
        self._tokens = None if token_file is None else TokenFile(token_file)
        loopback = is_loopback(host)
        if not loopback and not (allow_remote and self._tokens is not None):
            raise BadInput(
                f"other machines can reach {host}: give --allow-remote and --token-file, or listen on 127.0.0.1"
            )
        if not loopback and tls is None:
            warnings.warn("tokens and data travel in clear: give --tls-cert and --tls-key", LeptonWarning, stacklevel=2)
        self._hosts = LOOPBACK_NAMES | {name.lower() for name in allow_hosts} if loopback else None
        self._limits = with_files(limits or ServeLimits())
        self._server = WebServer(self._limits, host, port, None if tls is None else tls_context(*tls))
        self.host, self.port = self._server.host, self._server.port

    @property
    def url(self) -> str:
        """Without a path."""
        return self._server.url

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
                guard = Guard(
                    routes.router,
                    metrics,
                    admit=self._admit,
                    hosts=self._hosts,
                    access=self._access,
                    nothing=f"there are {', '.join(ROUTES)}",
                )
                self._server.run(guard, refused=metrics.refused, on_ready=on_ready, on_stopping=routes.drain)
        finally:
            batcher.close()
            self._server.close()

    def stop(self) -> None:
        """As SIGTERM; from any thread. Returns at once."""
        self._server.begin_to_stop()

    def __enter__(self) -> ModelServer:
        self._server.start(self.run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    def _admit(self, note: Note, headers: Headers, state: dict[str, Any]) -> None:
        if self._tokens is not None and note.path not in OPEN_ROUTES:
            note.token = self._tokens.name_of(bearer(headers))
            if note.token is None:
                raise Refused("unauthorized", "a valid token is needed: authorization: Bearer TOKEN")
