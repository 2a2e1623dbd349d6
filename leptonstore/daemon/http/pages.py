"""The dashboard: server-rendered pages below /ui for people who look at a store.

    app routes = [..., *pages.routes(context)]        (PagesContext says what the pages need of the daemon)

A request is answered in one of a few threads: who is it (a session's cookie, else an Authorization header), is its form one of ours, may
it; then the page's own function. Errors become pages that carry the request's id. Nothing here is inline script or style: the content
security policy forbids both, and everything that comes from the store is escaped.

    /ui                                     overview            /ui/live                its figures, for the script
    /ui/KIND, /ui/KIND/NAME                 names, history      /ui/KIND/NAME/REF       a version
    …/REF/rows, …/REF/rows/N                rows, one row       …/REF/value/N/COLUMN    a value as a file
    /ui/dataset/NAME/diff?before=&after=    two versions        /ui/jobs, tokens, cluster, audit, login, logout
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import warnings
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from leptonstore.daemon.access import Principal
from leptonstore.daemon.http import (
    pages_audit,
    pages_diff,
    pages_jobs,
    pages_names,
    pages_overview,
    pages_rows,
    pages_sign_in,
    pages_tokens,
    pages_version,
)
from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import NOBODY, Ask, Desk, Handler
from leptonstore.daemon.http.pages_context import PagesContext
from leptonstore.daemon.http.pages_measure import Measures
from leptonstore.daemon.http.pages_render import HEADERS, Renderer
from leptonstore.daemon.http.pages_seen import Seen
from leptonstore.daemon.http.pages_session import Session
from leptonstore.daemon.operations import Of, Operation, Scope
from leptonstore.daemon.redact import Redactor
from leptonstore.errors import (
    BadInput,
    Conflict,
    LeptonError,
    LeptonWarning,
    MissingExtra,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    StoreFull,
    TierUnavailable,
    TooBusy,
)

_log = logging.getLogger("lepton.daemon")
# What a page counts as for limits of requests. It is no operation of its own: its parts ask for what they show.
PAGE = Operation("dashboard", "GET /ui", Scope.READ, Of.ANY)
# The first class that fits counts. What is none of these is damage, or too new: the store's fault, not the reader's.
_STATUS: tuple[tuple[type[LeptonError], int], ...] = (
    (NotAuthenticated, 401),
    (NotPermitted, 403),
    (BadInput, 400),
    (NotFound, 404),
    (Conflict, 409),
    (TooBusy, 429),
    (MissingExtra, 501),
    (TierUnavailable, 503),
    (StoreFull, 507),
)
_TITLES = {
    400: "That cannot be shown",
    401: "Signed out",
    403: "Not permitted",
    404: "Not found",
    405: "Not for this page",
    409: "Somebody was faster",
    413: "Too large",
    429: "Too busy",
    500: "Internal error",
    501: "A part is not installed",
    503: "Out of reach",
    507: "Full",
}


def routes(context: PagesContext) -> list[BaseRoute]:
    """The routes of the dashboard, for the application of the control plane."""
    return Pages(context).routes()


class Pages:
    """The dashboard of one daemon. `close` it when the daemon ends."""

    def __init__(self, context: PagesContext) -> None:
        store = context.store
        places = Redactor([store.url, *(tier.url for tier in store.tier.tiers)])
        self._desk = Desk(context, Seen(store, context.cache), Measures(store), Renderer(context.name), places)
        self._pool = ThreadPoolExecutor(bounds.THREADS, thread_name_prefix="lepton-pages")
        self._waiting = 0

    def sign_in_path(self, authorization: str) -> str:
        """Where a browser signs in, once, as whom `authorization` stands for; after http://host:port."""
        return self._desk.context.sessions.sign_in_path(authorization)

    def close(self) -> None:
        """No page is answered any more."""
        self._desk.measures.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def routes(self) -> list[BaseRoute]:
        """Its routes, the more special ones first."""
        version = "/ui/{kind}/{name}/{ref}"

        def get(path: str, handler: Handler) -> Route:
            return Route(path, self._endpoint(handler), methods=["GET"])

        def post(path: str, handler: Handler) -> Route:
            return Route(path, self._endpoint(handler), methods=["POST"])

        return [
            Route("/", _to_overview, methods=["GET"]),
            Route("/ui/static/{stamp}/{file}", self._static, methods=["GET"]),
            Route("/ui/login", self._endpoint(pages_sign_in.form, open_to_all=True), methods=["GET"]),
            Route("/ui/login", self._endpoint(pages_sign_in.sign_in, open_to_all=True), methods=["POST"]),
            post("/ui/logout", pages_sign_in.sign_out),
            get("/ui", pages_overview.overview),
            get("/ui/live", pages_overview.live),
            get("/ui/jobs", pages_jobs.jobs),
            post("/ui/jobs", pages_jobs.start),
            post("/ui/jobs/{id}/stop", pages_jobs.stop),
            get("/ui/tokens", pages_tokens.tokens),
            post("/ui/tokens", pages_tokens.add),
            post("/ui/tokens/{id}/revoke", pages_tokens.revoke),
            get("/ui/cluster", pages_audit.members),
            get("/ui/audit", pages_audit.audit),
            get("/ui/dataset/{name}/diff", pages_diff.diff),
            get("/ui/{kind}", pages_names.names),
            get("/ui/{kind}/{name}", pages_names.history),
            get(version, pages_version.version),
            get(f"{version}/rows", pages_rows.rows),
            get(f"{version}/rows/{{row:int}}", pages_rows.row),
            get(f"{version}/value/{{row:int}}/{{column:int}}", pages_rows.value),
            Route("/ui/{rest:path}", self._endpoint(_nothing)),
        ]

    # -- one request -----------------------------------------------------------------------------------------------

    def _endpoint(self, handler: Handler, open_to_all: bool = False) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            ask = self._ask(request)
            try:
                if self._waiting >= bounds.WAITING_MAX + bounds.THREADS:
                    raise TooBusy("too many pages are being made: try again in a moment", 2.0)
                if request.method == "POST":
                    ask.form = await _form(request)
                self._waiting += 1
                try:
                    loop = asyncio.get_running_loop()
                    async with asyncio.timeout(bounds.PAGE_S):
                        return await loop.run_in_executor(
                            self._pool, self._answered, ask, handler, open_to_all, request
                        )
                finally:
                    self._waiting -= 1
            except TimeoutError:
                return self._error(
                    ask, TooBusy(f"this took longer than {bounds.PAGE_S:.0f} s: ask for less of it", 5.0)
                )
            except LeptonError as error:
                return self._error(ask, error)
            except ClientDisconnect:
                raise
            except Exception:
                _log.exception("request %s failed", ask.request_id)
                return self._error(ask, None)

        return endpoint

    def _answered(self, ask: Ask, handler: Handler, open_to_all: bool, request: Request) -> Response:
        """In a thread: everything that may block."""
        _require_same_origin(request)
        if not open_to_all:
            ask.who = self._authenticated(ask, request)
            self._desk.context.access.charge(ask.who, PAGE, 0, ask.address)
            if (
                ask.method == "POST"
                and ask.session is not None
                and not ask.session.holds(ask.form.get("form_token", ""))
            ):
                error = NotPermitted("this form is not of your session: load its page again, and repeat it")
                ask.did("dashboard", ask.url_path, error)
                raise error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LeptonWarning)  # what they say stands in the pages
            try:
                return handler(ask)
            except NotPermitted as error:
                ask.did("dashboard", ask.url_path, error)
                raise

    def _authenticated(self, ask: Ask, request: Request) -> Principal:
        """Who asks. Raises NotAuthenticated."""
        access = self._desk.context.access
        given = request.headers.get("authorization")
        if given is not None:
            return access.authenticate(given, None, ask.address)
        secret = request.cookies.get(ask.cookie, "")
        session = self._desk.context.sessions.find(secret) if secret else None
        if session is not None:
            try:
                who = access.authenticate(session.authorization, None, ask.address)
            except NotAuthenticated:
                self._desk.context.sessions.end(session)
                raise
            ask.session = session
            return who
        certificate = self._desk.context.certificate(request)
        if certificate or self._desk.context.anonymous:
            return access.authenticate(None, certificate, ask.address)
        raise NotAuthenticated("sign in first")

    def _ask(self, request: Request) -> Ask:
        note = getattr(request.state, "note", None)
        url = request.url
        query = parse_qsl(
            url.query[: bounds.QUERY_CHARS_MAX], keep_blank_values=True, max_num_fields=bounds.FORM_FIELDS_MAX
        )
        secure = url.scheme == "https"
        return Ask(
            desk=self._desk,
            method=request.method,
            url_path=url.path,
            path=dict(request.path_params),
            query=_first(query),
            form={},
            who=NOBODY,
            session=None,
            request_id=getattr(note, "id", None) or secrets.token_hex(8),
            address=request.client.host if request.client else "",
            secure=secure,
            # Cookies know no ports: two daemons of one host need two names. __Host-: set by this host, for https alone.
            cookie=f"{'__Host-' if secure else ''}lepton-{url.port or (443 if secure else 80)}",
            cookies=request.cookies,
            wants_json=request.headers.get("accept") == "application/json",
        )

    def _error(self, ask: Ask, error: LeptonError | None) -> Response:
        """What went wrong as a page, or for the script. None: a bug."""
        status = 500
        if error is not None:
            status = next((number for kind, number in _STATUS if isinstance(error, kind)), 500)
        said = (
            "This is a fault of the daemon; its log has more under this id."
            if error is None
            else self._desk.told(error)
        )
        if ask.wants_json:
            return JSONResponse({"error": said, "request_id": ask.request_id}, status, HEADERS)
        if isinstance(error, NotAuthenticated) and ask.method in ("GET", "HEAD"):
            back = "" if ask.url_path == "/ui" else f"?next={quote(ask.url_path, safe='')}"
            return RedirectResponse(f"/ui/login{back}", 303, HEADERS)
        answer = ask.page("error.html.j2", status, title=_TITLES.get(status, "Error"), said=said, number=status)
        if isinstance(error, TooBusy):
            answer.headers["retry-after"] = str(max(1, round(error.retry_after_s)))
        return answer

    async def _static(self, request: Request) -> Response:
        found = self._desk.renderer.static(request.path_params["file"])
        return found or Response(status_code=404, headers=HEADERS)


async def _to_overview(request: Request) -> Response:
    return RedirectResponse("/ui", 307, HEADERS)


def _nothing(ask: Ask) -> Response:
    raise NotFound("there is no such page")


def _first(pairs: list[tuple[str, str]]) -> Mapping[str, str]:
    """The first value of each name."""
    return dict(reversed(pairs))


async def _form(request: Request) -> Mapping[str, str]:
    """The fields of a form. Raises BadInput. What a browser sends without files; several fields of a name are joined by line ends."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise BadInput(f"a form is sent as application/x-www-form-urlencoded, not as {kind[:80]!r}")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > bounds.FORM_BYTES_MAX:
            raise BadInput(f"a form has at most {bounds.FORM_BYTES_MAX:,} bytes")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=bounds.FORM_FIELDS_MAX)
    except ValueError:
        raise BadInput("the form cannot be read") from None
    fields: dict[str, str] = {}
    for name, value in pairs:
        fields[name] = f"{fields[name]}\n{value}" if name in fields else value
    return fields


def _require_same_origin(request: Request) -> None:
    """A form that another site sends is refused before its token is looked at. Raises NotPermitted."""
    if request.method != "POST":
        return
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    foreign = site is not None and site not in ("same-origin", "none")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        foreign = True
    if foreign:
        raise NotPermitted("this form was sent by another site")


__all__ = ["Pages", "PagesContext", "Session", "routes"]
