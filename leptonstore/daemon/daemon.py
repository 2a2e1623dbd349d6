"""Daemon: a store, its operations, and both planes, as one thing that starts, is ready, drains and stops.

    starting   open the store -> operations -> listen (Flight, HTTP) -> ready
    stopping   not ready (drain_wait_s) -> no new requests -> those under way end (drain_s), jobs are stopped, sessions closed -> closed

    threads    Flight's own | one event loop for HTTP | jobs | whoever called: `start` returns when requests are answered

Every part that can end by itself is watched: when one does, `failure` says which, and whoever was given to `start` is called. Any number
of daemons may be in a process, of different stores or the same one.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from leptonstore.daemon.local_token import local_token_path, remove_local_token, write_local_token
from leptonstore.daemon.parts import access_of, certificates_of, hot_cache_of
from leptonstore.daemon.settings import Settings, reloaded
from leptonstore.errors import BadInput, MissingExtra
from leptonstore.store import Store
from leptonstore.store.keys import Unlock

try:
    from leptonstore.daemon import token_requests
    from leptonstore.daemon.cluster.joined import cluster_of, join, open_store
    from leptonstore.daemon.flight import FlightServer
    from leptonstore.daemon.jobs import Jobs
    from leptonstore.daemon.maintenance import requests as job_requests
    from leptonstore.daemon.metrics import Metrics
    from leptonstore.daemon.reachable import Reachable
    from leptonstore.daemon.service import Service
except ModuleNotFoundError as error:
    raise MissingExtra("serving a store", "server", error.name or "") from None

PORT_TRIES = 8  # free ports that somebody else took meanwhile, before that is told
JOBS_STOP_S = 10.0  # for a job to end after it was told to

log = logging.getLogger("lepton.daemon")


class Daemon:
    """One store, served. `with Daemon(settings) as daemon` starts and stops it; `running.run` makes it a process's main thing.

    unlock: the secret of an encrypted store, or what is called for it.
    """

    def __init__(self, settings: Settings, unlock: Unlock | None = None) -> None:
        self.settings = settings
        self._unlock = unlock
        self._parts = ExitStack()  # what `stop` takes down, last first
        self._on_failure: Callable[[], None] = lambda: None
        self.failure = ""  # which part ended by itself, and why
        self.draining = False
        self.ready = False
        self.token_file: Path | None = None
        self._stopped = threading.Lock()

    # -- starting ----------------------------------------------------------------------------------------------------

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Returns when requests are answered. on_failure: called, from any thread, when a part ends by itself.

        Raises what opening the store does; BadInput for an address that cannot be listened on, and for a log that cannot be written.
        """
        self._on_failure = on_failure
        try:
            self._start()
        except BaseException:
            self._parts.close()
            raise
        self.ready = True
        log.info("serving %s at %s, HTTP at %s", self.settings.store, self.url, self.http_url or "-")

    def _start(self) -> None:
        settings, parts = self.settings, self._parts
        self.cluster = cluster_of(settings)
        if self.cluster is not None:
            parts.callback(self.cluster.close)
        self.store = parts.enter_context(self._open_store())
        self.cache = hot_cache_of(settings, self.store, log.warning)
        if self.cache is not None:
            parts.callback(self.cache.close)
        self.metrics = Metrics()
        self.reachable = Reachable(self.store)
        parts.callback(self.reachable.close)
        self.service = Service(
            self.store,
            settings.name,
            open_store=self._open_store,
            cache=self.cache,
            sight=self.reachable.visible,
            may_reach=self.reachable.may_reach,
        )
        parts.callback(self.service.close)
        # Jobs (gc, check) look at the home itself, not at what the cluster keeps of it.
        self.jobs = Jobs(lambda: open_store(settings.store, self._unlock, None))
        parts.callback(self.jobs.close)
        self.service.add("job", lambda principal, request: job_requests.act(self.jobs, principal, request))
        self.service.add("jobs", lambda principal, request: job_requests.act(self.jobs, principal, request))
        self._listen()

    def _open_store(self) -> Store:
        """A store object of its own: the daemon's, or a write session's."""
        return open_store(self.settings.store, self._unlock, self.cluster)

    def _listen(self) -> None:
        """Both planes. A free port that was looked for may be taken before it is used: then another one."""
        settings = self.settings
        for attempt in range(PORT_TRIES):
            port = free_port(settings.host, settings.port)
            token = write_local_token(port)
            try:
                self.access = access_of(settings, self.store, token)
                token_requests.add_to(self.service, self.access.tokens)
                self.flight = FlightServer(
                    self.service, self.access, settings.host, port, metrics=self.metrics, **certificates_of(settings)
                )
                break
            except BadInput:
                remove_local_token(port, token)
                if settings.port or attempt == PORT_TRIES - 1:
                    raise
        self.port = self.flight.port
        self.token_file = local_token_path(self.port)
        self._parts.callback(remove_local_token, self.port, token)
        self._parts.callback(self.access.close)
        self._parts.callback(self.flight.shutdown)
        if self.cluster is not None:
            join(self.cluster, self.service, self.access, self.store)

    def _failed(self, part: str, why: object) -> None:
        """A part has ended by itself: the rest is to follow."""
        if not self.draining and not self.failure:
            self.failure = f"{part} ended: {why}"
            log.error("%s; the daemon ends", self.failure)
            self._on_failure()

    # -- where it is -------------------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """That others reach this daemon by."""
        settings = self.settings
        if settings.advertise:
            return settings.advertise
        return socket.gethostname() if settings.host in ("", "0.0.0.0", "::") else settings.host

    @property
    def url(self) -> str:
        """What stands for the store's path."""
        return f"{'lepton+tls' if self.settings.tls else 'lepton'}://{bracketed(self.host)}:{self.port}/{self.settings.name}"

    @property
    def http_url(self) -> str:
        """Of the control plane, without a path."""
        return ""

    def login_url(self) -> str:
        """Signs its first visitor in to the dashboard as an administrator."""
        return ""

    def to_json(self) -> dict[str, Any]:
        """For scripts. No secret: `token_file` says where one is that this user can read."""
        return {
            "url": self.url,
            "http_url": self.http_url,
            "name": self.settings.name,
            "store": self.settings.store,
            "host": self.settings.host,
            "port": self.port,
            "http_port": 0,
            "token_file": str(self.token_file),
        }

    # -- changing ----------------------------------------------------------------------------------------------------

    def reload(self, settings: Settings) -> None:
        """Take over what can change in a running daemon; what cannot is named in the log. Raises as making the parts does."""
        self.settings, kept = reloaded(self.settings, settings)
        for option in kept:
            log.warning("%s has changed: that takes effect when the daemon is started again", option)
        log.info("settings and certificates were read again")

    # -- ending ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Drain, and close everything. May be called again, from any thread; returns when it is done."""
        with self._stopped:
            if not self.draining:
                self._drain()
            self._parts.close()

    def _drain(self) -> None:
        self.draining, self.ready = True, False
        if self.settings.drain_wait_s and not self.failure:
            time.sleep(self.settings.drain_wait_s)
        began = time.monotonic()
        if not self.flight.drain(self.settings.drain_s):
            log.warning("%d requests had not ended after %g s and are cut off", self.flight.under_way, self.settings.drain_s)
        log.info("drained in %.1f s", time.monotonic() - began)

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *of: object) -> None:
        self.stop()


def free_port(host: str, port: int) -> int:
    """`port`, when it can be listened on, or a free one for 0. Raises BadInput in one line: gRPC says it in many."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        taken = ": is a daemon running there already? choose another --port" if error.errno == 98 else ""
        raise BadInput(f"cannot listen on {bracketed(host)}:{port}: {error.strerror}{taken}") from None


def bracketed(host: str) -> str:
    """As it stands in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
