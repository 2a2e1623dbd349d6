"""ControlPlane: the daemon's application for HTTP. Every request's way, once the guard (web/guard.py) has let it in:

    place (429 when there is none) -> who is it -> how much (rates) -> what it asks for -> its answer, sent as it is taken -> audit, counts

What may block runs in threads (work.py). /healthz and /readyz need no place and no credential, /metrics has a thread of its own: all three
answer while everything else is overloaded.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from leptonstore.daemon import tracing
from leptonstore.daemon.access import ANONYMOUS_ID, Access
from leptonstore.daemon.http.ask import Ask, query_of
from leptonstore.daemon.http.bounds import PATH_PART_CHARS_MAX
from leptonstore.daemon.http.content import Content
from leptonstore.daemon.http.failures import Failed, failed, told
from leptonstore.daemon.http.gateway import Gateway
from leptonstore.daemon.http.health import Health
from leptonstore.daemon.http.openapi import document
from leptonstore.daemon.http.table import paths_of
from leptonstore.daemon.http.work import Work
from leptonstore.daemon.metrics import CONTENT_TYPE, OK, Call, Metrics
from leptonstore.daemon.operations import OPERATIONS, Operation
from leptonstore.daemon.principals import Principal
from leptonstore.daemon.service import Service
from leptonstore.daemon.tls import certificate_name
from leptonstore.errors import BadInput, LeptonError, NotPermitted
from leptonstore.web.guard import CLIENT_GONE, LOOPBACK_NAMES, Guard, Headers, Note
from leptonstore.web.refusal import Refused

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
log = logging.getLogger("lepton.daemon.http")
Handler = Callable[[Ask, Operation], ASGIApp]


class ControlPlane:
    """The application. Call it as ASGI from one event loop; `drain` and `close` from any thread."""

    def __init__(
        self,
        service: Service,
        access: Access,
        metrics: Metrics,
        *,
        hosts: Container[str] | None = None,
        pages: Iterable[BaseRoute] = (),
        access_log: Callable[[str], None] | None = None,
    ) -> None:
        """hosts: names that may stand in Host; None for any. pages: routes of the dashboard. access_log: is given a line of JSON for each
        request."""
        self.service, self.access, self.metrics = service, access, metrics
        self.work, self.health = Work(), Health(service)
        self.content, self.gateway = Content(service, self.work), Gateway(self)
        self._aside = ThreadPoolExecutor(2, thread_name_prefix="lepton-http-aside")
        self._openapi = json.dumps(document(service.name), ensure_ascii=False).encode()
        handlers: dict[str, Handler] = {
            "content": self.content.names,
            "content.kind": self.content.names,
            "content.chunk": self.content.chunk,
            "content.version": self.content.version,
            "content.rows": self.content.rows,
            "content.value": self.content.value,
            "content.files": self.content.files,
            "openapi": self._document,
        }
        routes: list[BaseRoute] = [
            Route("/healthz", self.health.alive, methods=["GET"]),
            Route("/readyz", self.health.ready, methods=["GET"]),
            Route("/metrics", _Endpoint(functools.partial(self._metrics, OPERATIONS["metrics"])), methods=["GET"]),
            Route("/v1/{op}", _Endpoint(self.gateway.answer), methods=["POST"]),
        ]
        for name, handler in handlers.items():
            endpoint = _Endpoint(functools.partial(self._answer, OPERATIONS[name], handler))
            routes += [Route(path, endpoint, methods=["GET"]) for path in paths_of(OPERATIONS[name])]
        metrics.gauge("lepton_http_places_taken", "Requests over HTTP that use the store", lambda: self.work.running)
        metrics.gauge("lepton_http_waiting", "Requests over HTTP that wait for a place", lambda: self.work.waiting)
        self._guard = Guard(
            Router([*routes, *pages], redirect_slashes=False),
            _Watch(metrics),
            admit=_admit,
            hosts=hosts,
            access=access_log,
            told=told,
            headers=HEADERS,
            nothing="there is nothing at this path; /openapi.json says what there is",
            translate=self._translate,
            log=log,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guard(scope, receive, send)

    def drain(self) -> None:
        """From now on /readyz says no. Requests are answered all the same."""
        self.health.draining = True

    def close(self) -> None:
        """Threads end, as soon as they can."""
        self.work.close()
        self.health.close()
        self.gateway.close()
        self._aside.shutdown(wait=False, cancel_futures=True)

    # -- one request -----------------------------------------------------------------------------------------------

    async def serve(
        self,
        operation: Operation | str,
        scope: Scope,
        run: Callable[[One], Awaitable[None]],
    ) -> None:
        """What every request has in common: a place, a span, counts, the audit log. `run` does the rest. operation: or the name of one that
        there is not."""
        note: Note = scope["state"]["note"]
        name = operation if isinstance(operation, str) else operation.name
        one = One(self, operation, scope, note)
        note.call = self.metrics.begin(name)
        note.more["operation"] = name
        outcome: LeptonError | str = OK
        try:
            with tracing.span(f"http {name}", one.headers, {"lepton.request_id": note.id}):
                async with self.work.place():
                    await run(one)
        except LeptonError as error:
            outcome = error
            raise
        except Refused as refused:
            outcome = refused.kind
            raise
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            if one.principal is not None:
                self.access.spend(one.principal, note.bytes_out, note.client)
            writes = isinstance(operation, Operation) and operation.writes
            if writes or isinstance(outcome, NotPermitted):
                await self.aside(self.access.audit, one.principal, operation, one.what, outcome, note.client)

    async def aside(self, do: Callable[..., Any], *args: Any) -> Any:
        """Call it in a thread that requests for the store cannot occupy."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, do, *args)

    async def _answer(self, operation: Operation, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        async def run(one: One) -> None:
            response = await self.work.run(one.handle, handler)
            await response(scope, receive, send)

        await self.serve(operation, scope, run)

    async def _metrics(self, operation: Operation, scope: Scope, receive: Receive, send: Send) -> None:
        """For Prometheus; from a thread of its own, and without a place."""
        note: Note = scope["state"]["note"]
        note.call = self.metrics.begin(operation.name)
        one = One(self, operation, scope, note)

        def made() -> bytes:
            one.authenticate().require(operation)
            return self.metrics.text()

        try:
            response = Response(await self.aside(made), headers={"content-type": CONTENT_TYPE})
        except NotPermitted as denied:
            await self.aside(self.access.audit, one.principal, operation, "", denied, note.client)
            raise
        await response(scope, receive, send)

    def _document(self, ask: Ask, operation: Operation) -> Response:
        ask.principal.require(operation)
        return Response(self._openapi, media_type="application/json", headers={"cache-control": "no-cache"})

    def _translate(self, error: Exception) -> Refused | None:
        if not isinstance(error, LeptonError):
            return None
        return failed(self.service.failure(error, "http"))


class One:
    """One request: what its head says, and who asks once that is known."""

    def __init__(self, plane: ControlPlane, operation: Operation | str, scope: Scope, note: Note) -> None:
        self.plane, self.operation, self.scope, self.note = plane, operation, scope, note
        self.request = HttpRequest(scope)
        self.headers = dict(self.request.headers)
        self.principal: Principal | None = None
        self.what = ""  # for the audit log

    def authenticate(self) -> Principal:
        """Whom it comes from. May block. Raises NotAuthenticated, TooBusy, TierUnavailable."""
        given = self.request.headers.getlist("authorization")
        # Two are no credential, rather than the better of the two.
        authorization = None if not given else given[0] if len(given) == 1 else ""
        certificate = certificate_of(self.scope)
        self.principal = self.plane.access.authenticate(authorization, certificate, self.note.client)
        self.note.more["principal"] = self.principal.name
        call: Call = self.note.call
        call.client = self.principal.name
        return self.principal

    def handle(self, handler: Handler) -> ASGIApp:
        """In a thread: who, how much, and what."""
        operation = self.operation
        assert isinstance(operation, Operation)
        principal = self.authenticate()
        self.plane.access.charge(principal, operation, 0, self.note.client)
        query = query_of(self.scope["query_string"])
        self.what = self.request.path_params.get("version", "")[:200]
        path = self.scope.get("raw_path", b"").decode("ascii").rstrip("/")
        if "\ufffd" in self.scope["path"]:
            raise BadInput("the path is no UTF-8")
        ask = Ask(
            principal,
            self.scope["method"],
            self.request.path_params,
            query,
            self.headers.get("accept", ""),
            path,
            principal.id == ANONYMOUS_ID,
        )
        return handler(ask, operation)


def _admit(note: Note, headers: Headers, state: dict[str, Any]) -> None:
    """Nobody is refused here for who they are: that is the routes' matter, some of which are open to all."""
    if max(map(len, note.path.split("/"))) > PATH_PART_CHARS_MAX:
        raise Failed("BadInput", f"a part of the path has more than {PATH_PART_CHARS_MAX:,} characters", 400)


class _Endpoint:
    """An ASGI application for Starlette's Route, which would take a function for one of requests."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


class _Watch:
    """Counts requests in Metrics. Those that came to no operation are counted by why they were refused."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def began(self, note: Note) -> None:
        """Nothing is known yet."""

    def refused(self, kind: str) -> None:
        """An error of an operation is its outcome; this is for the others, too."""
        self._metrics.refuse(kind)

    def moved(self, note: Note, bytes_in: int, bytes_out: int) -> None:
        """Bytes of a body."""
        if note.call is not None:
            note.call.moved(bytes_in=bytes_in, bytes_out=bytes_out)

    def ended(self, note: Note, seconds: float) -> None:
        """Its outcome is the class of its error."""
        if note.call is not None:
            gone = "client_gone" if note.status == CLIENT_GONE else OK
            note.call.end(note.error or gone)


class Hosts:
    """Names that may stand in Host. An IP address may always: a page that rebinds a name (DNS) sends that name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = LOOPBACK_NAMES | {name.lower() for name in names}

    def __contains__(self, name: object) -> bool:
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(str(name).strip("[]"))
        except ValueError:
            return False
        return True


def certificate_of(scope: Scope) -> str | None:
    """The name of the client certificate that TLS has verified, if there is one."""
    return certificate_name(scope.get("state", {}).get("certificate"))
