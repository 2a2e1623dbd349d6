"""HttpServer: the control plane on a port, in a thread of its own. `drain` and `stop` end it in two steps.

app = make_app(service, access, metrics, settings)
server = HttpServer(app, "127.0.0.1", 7401)
server.start()          returns when requests are answered
server.drain()          /readyz says no; everything is still answered
server.stop()           no more connections; what is under way is answered, for at most drain_s
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Container
from typing import Any

from leptonstore.daemon.http.app import ControlPlane, Hosts
from leptonstore.daemon.http.failures import told
from leptonstore.daemon.metrics import Metrics
from leptonstore.daemon.service import Service
from leptonstore.daemon.settings import Settings
from leptonstore.web.limits import WebLimits
from leptonstore.web.server import WebServer, is_loopback, with_files


def make_app(
    service: Service,
    access: Any,
    metrics: Metrics,
    settings: Settings | None = None,
    *,
    access_log: Callable[[str], None] | None = None,
    pages: Callable[[], Any] | None = None,
) -> ControlPlane:
    """The application. pages: gives the routes of the dashboard (pages.routes); None for none."""
    return ControlPlane(
        service,
        access,
        metrics,
        hosts=allowed_hosts(settings),
        access_log=access_log,
        pages=() if pages is None else pages(),
    )


def allowed_hosts(settings: Settings | None) -> Container[str] | None:
    """Names that may stand in Host; None for any.

    A page of another site can make a browser of this network send requests here under a name of its own (DNS rebinding), without our
    credentials. That matters where something is told without credentials, and where only this machine can ask.
    """
    if settings is None:
        return Hosts(())
    if not is_loopback(settings.host) and settings.anonymous == "none":
        return None
    return Hosts((*settings.allow_host, *filter(None, (settings.advertise, settings.host))))


def web_limits(settings: Settings | None) -> WebLimits:
    """Those of HTTP, as settings say. `drain_wait_s` is the daemon's own: both planes wait together."""
    if settings is None:
        return WebLimits()
    return WebLimits(connections_max=settings.connections_max, drain_s=max(settings.drain_s, 0.001))


class HttpServer:
    """Binds its port when it is made (0: a free one, see `port`); may be started once. Raises BadInput when the port cannot be had.

    tls: a server's context (tls.ServerTls.http_context). on_end: called, in the server's thread, when it ends without being told to.
    """

    def __init__(
        self,
        app: ControlPlane,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        limits: WebLimits | None = None,
        on_end: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self._app, self._on_end = app, on_end
        self._server = WebServer(with_files(limits or WebLimits()), host, port, tls)
        self.host, self.port = self._server.host, self._server.port
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        """Without a path."""
        return self._server.url

    def start(self) -> None:
        """Returns when requests are answered."""
        self._server.start(self._run)

    def drain(self) -> None:
        """/readyz says no from now on. Everything is answered all the same."""
        self._app.drain()

    def stop(self, timeout_s: float | None = None) -> None:
        """Take no more connections, and return when what was under way has ended, at most drain_s later. May be called again."""
        self._stopping.set()
        self.drain()
        self._server.stop(timeout_s)
        self._server.close()
        self._app.close()

    def _run(self, on_ready: Callable[[], None]) -> None:
        failure: BaseException | None = None
        try:
            self._server.run(
                self._app, refused=self._app.metrics.refuse, told=told, on_ready=on_ready, on_stopping=self._app.drain
            )
        except BaseException as error:
            failure = error
            raise
        finally:
            if self._on_end is not None and not self._stopping.is_set():
                self._on_end(failure)

    def __enter__(self) -> HttpServer:
        self.start()
        return self

    def __exit__(self, *of: object) -> None:
        self.stop()
