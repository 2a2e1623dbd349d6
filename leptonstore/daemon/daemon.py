"""Daemon: a store, its operations, and both planes, as one thing that starts, is ready, drains and stops.

    starting   open the store -> operations -> listen (Flight, HTTP) -> ready
    stopping   not ready (drain_wait_s) -> no new requests, jobs are stopped -> those under way end (drain_s) -> sessions closed -> closed

    threads    Flight's own | one event loop for HTTP | jobs | whoever called: `start` returns when requests are answered

Every part that can end by itself is watched: when one does, `failure` says which, and whoever was given to `start` is called. Any number
of daemons may be in a process, of different stores or the same one.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from leptonstore.daemon.local_token import local_token_path, remove_local_token, write_local_token
from leptonstore.daemon.parts import access_of, access_settings, hot_cache_of
from leptonstore.daemon.settings import Settings, reloaded
from leptonstore.daemon.tls import ServerTls, replace_listener
from leptonstore.errors import BadInput, MissingExtra
from leptonstore.store import Store
from leptonstore.store.keys import Unlock

try:
    from leptonstore.daemon import token_requests
    from leptonstore.daemon.cluster.joined import cluster_of, join, open_store
    from leptonstore.daemon.flight import FlightServer
    from leptonstore.daemon.http.pages import Pages
    from leptonstore.daemon.http.pages_context import context_of
    from leptonstore.daemon.http.server import HttpServer, make_app, web_limits
    from leptonstore.daemon.jobs import Jobs
    from leptonstore.daemon.logs import LineLog
    from leptonstore.daemon.maintenance import requests as job_requests
    from leptonstore.daemon.metrics import Metrics
    from leptonstore.daemon.principals import Principal
    from leptonstore.daemon.reachable import Reachable
    from leptonstore.daemon.service import Service
except ModuleNotFoundError as error:
    raise MissingExtra("serving a store", "server", error.name or "") from None

PORT_TRIES = 8  # free ports that somebody else took meanwhile, before that is told
SHUTDOWN_S = 5.0  # for what was cut off after drain_s to let go of its connection

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
        self.stuck = False  # a request did not let go of its connection: the process cannot end in the usual way
        self.token_file: Path | None = None
        self._one_at_a_time = threading.Lock()  # of reload and stop

    # -- starting ----------------------------------------------------------------------------------------------------

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Returns when requests are answered. on_failure: called, from any thread, when a part ends by itself.

        Raises what opening the store does; BadInput for an address that cannot be listened on, and for a log that cannot be written;
        SourceError for certificates.
        """
        self._on_failure = on_failure
        try:
            self._start()
        except BaseException:
            self._parts.close()
            raise

    def _start(self) -> None:
        settings, parts = self.settings, self._parts
        # What a user may have got wrong comes before what takes time.
        free_port(settings.host, settings.port)
        self.tls = None
        if settings.tls:
            self.tls = ServerTls(settings.tls_cert, settings.tls_key, settings.client_ca or None)
        self.access_log = LineLog(settings.access_log) if settings.access_log else None
        if self.access_log is not None:
            parts.callback(self.access_log.close)
        self.cluster = cluster_of(settings, self.host)
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
        self.service.told = self._told
        parts.callback(self.service.close)
        # Jobs (gc, check) look at the home itself, not at what the cluster keeps of it.
        self.jobs = Jobs(lambda: open_store(settings.store, self._unlock, None))
        parts.callback(self.jobs.close)
        for op in ("job", "jobs", "stop"):
            self.service.add(op, lambda principal, request: job_requests.act(self.jobs, principal, request))
        self._listen()
        if self.cluster is not None:
            join(self.cluster, self.service, self.access, self.store)
        self.jobs.begin_schedule(lambda: not self.flight.under_way)

    def _open_store(self) -> Store:
        """A store object of its own: the daemon's, or a write session's."""
        return open_store(self.settings.store, self._unlock, self.cluster)

    def _told(self, principal: Principal, reader: str, figures: Mapping[str, Any]) -> None:
        self.metrics.told(principal.name, reader, figures)

    def _listen(self) -> None:
        """Both planes. A free port that was looked for may be taken before it is used: then another one."""
        settings, parts = self.settings, self._parts
        for attempt in range(PORT_TRIES):
            self.port = free_port(settings.host, settings.port)
            token = write_local_token(self.port)
            try:
                self.access = access_of(settings, self.store, token)
                token_requests.add_to(self.service, self.access.tokens)
                self.flight = self._new_flight()
                break
            except BaseException as error:
                remove_local_token(self.port, token)
                if not isinstance(error, BadInput) or settings.port or attempt == PORT_TRIES - 1:
                    raise
        self.token_file = local_token_path(self.port)
        parts.callback(remove_local_token, self.port, token)
        parts.callback(self.access.close)
        parts.callback(self._shut_down)
        self._authorization = f"Bearer {token}"
        context = context_of(
            self.service,
            self.access,
            self.metrics,
            url=self.url,
            anonymous=settings.anonymous != "none",
            jobs=self.jobs,
            cluster=lambda: None if self.cluster is None else self.cluster.snapshot(),
        )
        self._visitors = context.sessions
        pages = Pages(context)
        parts.callback(pages.close)
        app = make_app(
            self.service,
            self.access,
            self.metrics,
            settings,
            access_log=None if self.access_log is None else self.access_log.write,
            pages=pages.routes,
        )
        self.http = HttpServer(
            app,
            settings.host,
            settings.http_port,
            None if self.tls is None else self.tls.http_context,
            web_limits(settings),
            lambda error: self._failed("HTTP", error),
        )
        parts.callback(self.http.stop)
        self.service.http_url = self.http_url
        self.http.start()

    def _new_flight(self) -> FlightServer:
        settings, more = self.settings, {}
        if self.tls is not None:
            files = self.tls.flight_options()
            more = {"certificates": files["tls_certificates"][0], "client_roots": files["root_certificates"]}
        return FlightServer(self.service, self.access, settings.host, self.port, metrics=self.metrics, **more)

    def _failed(self, part: str, error: BaseException | None) -> None:
        """A part has ended by itself: the rest is to follow."""
        if not self.draining and not self.failure:
            self.failure = f"{part} ended by itself"
            log.error("%s; the daemon ends", self.failure, exc_info=error)
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
        settings = self.settings
        return f"{'lepton+tls' if settings.tls else 'lepton'}://{bracketed(self.host)}:{self.port}/{settings.name}"

    @property
    def http_url(self) -> str:
        """Of the control plane, without a path."""
        return f"{'https' if self.settings.tls else 'http'}://{bracketed(self.host)}:{self.http.port}"

    def login_url(self) -> str:
        """Signs its first visitor in to the dashboard as an administrator; good for some minutes."""
        return self.http_url + self._visitors.sign_in_path(self._authorization)

    def to_json(self) -> dict[str, Any]:
        """For scripts. No secret: `token_file` says where one is that this user can read."""
        return {
            "url": self.url,
            "http_url": self.http_url,
            "name": self.settings.name,
            "store": self.settings.store,
            "host": self.settings.host,
            "port": self.port,
            "http_port": self.http.port,
            "token_file": str(self.token_file),
            "pid": os.getpid(),
        }

    # -- changing ----------------------------------------------------------------------------------------------------

    def reload(self, settings: Settings) -> None:
        """Read certificates again, open the access log anew, and take over what can change in a running daemon; what cannot is named in the
        log. Requests under way go on. Raises SourceError (certificates), LeptonError (the port cannot be had again: the daemon fails)."""
        with self._one_at_a_time:
            if self.draining:
                return
            after, kept = reloaded(self.settings, settings)
            for option in kept:
                log.warning("%s has changed: that takes effect when the daemon is started again", option)
            changed = self.tls is not None and self.tls.reload()
            self.settings = after
            self.access.limit(access_settings(after).rates)
            if self.access_log is not None:
                self.access_log.reopen()
            self.access.close()  # the audit log: its next line opens it, wherever somebody has moved the file
            if changed:
                self._replace_flight()
        log.info("read again: settings, certificates%s, access log", " (which are new)" if changed else "")

    def _replace_flight(self) -> None:
        def make() -> FlightServer:
            try:
                return self._new_flight()
            except BadInput as error:  # the old one still has the port
                raise OSError(str(error)) from None

        try:
            self.flight, _ = replace_listener(self.flight, make)
        except BaseException as error:
            self._failed("Flight", error)
            raise

    # -- ending ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Drain, and close everything. May be called again, from any thread; returns when it is done."""
        with self._one_at_a_time:
            if not self.draining:
                self._drain()
            self._parts.close()

    def _drain(self) -> None:
        settings = self.settings
        self.draining = True
        self.http.drain()  # /readyz says no
        if settings.drain_wait_s and not self.failure:
            time.sleep(settings.drain_wait_s)
        began = time.monotonic()
        beside = [
            threading.Thread(target=end, name="lepton-drain")
            for end in (lambda: self.http.stop(settings.drain_s + SHUTDOWN_S), self.jobs.close)
        ]
        for thread in beside:
            thread.start()
        if not self.flight.drain(settings.drain_s):
            log.warning(
                "%d requests had not ended after %g s, and are cut off", self.flight.under_way, settings.drain_s
            )
        for thread in beside:
            thread.join()
        log.info("drained in %.1f s", time.monotonic() - began)

    def _shut_down(self) -> None:
        """gRPC waits for its calls; one that hangs must not keep the process."""
        ending = threading.Thread(target=self.flight.shutdown, name="lepton-flight-ends", daemon=True)
        ending.start()
        ending.join(SHUTDOWN_S)
        self.stuck = ending.is_alive()
        if self.stuck:
            log.warning("a request does not let go of its connection")

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *of: object) -> None:
        self.stop()


def free_port(host: str, port: int) -> int:
    """`port`, when it can be listened on, or a free one for 0. Raises BadInput in one line: gRPC says it in many."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
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
