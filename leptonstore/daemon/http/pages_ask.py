"""One request for a page: who asks, what for, and how it is answered. A page's function takes an `Ask` and returns a response.

It runs in a thread of the dashboard's own and may block on the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.responses import RedirectResponse, Response

from leptonstore.daemon.access import Principal
from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_context import PagesContext
from leptonstore.daemon.http.pages_measure import Measures
from leptonstore.daemon.http.pages_render import Renderer, Whole
from leptonstore.daemon.http.pages_seen import Seen
from leptonstore.daemon.http.pages_session import Session
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.redact import Redactor
from leptonstore.errors import BadInput, LeptonError, NotPermitted

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset

Handler = Callable[["Ask"], Response]
NOBODY = Principal("", "", ())


@dataclass
class Desk:
    """What all requests share."""

    context: PagesContext
    seen: Seen
    measures: Measures
    renderer: Renderer
    redactor: Redactor

    def told(self, error: LeptonError) -> str:
        """An error as a sentence, for somebody elsewhere: places of this host are none of their business."""
        said = self.redactor.text(str(error))
        return said[:1].upper() + said[1:] + ("" if said.endswith((".", "!", "?")) else ".")


@dataclass
class Ask:
    """path: what stands in the route's braces. query, form: the first value of each name. session: None for a header or a certificate."""

    desk: Desk
    method: str
    url_path: str
    path: Mapping[str, Any]
    query: Mapping[str, str]
    form: Mapping[str, str]
    who: Principal
    session: Session | None
    request_id: str
    address: str
    secure: bool = False
    cookie: str = ""  # the name of the session's cookie
    cookies: Mapping[str, str] = field(default_factory=dict)
    wants_json: bool = False  # the script asks: errors are JSON, too
    deadline: float = field(default_factory=lambda: time.monotonic() + bounds.PAGE_S)

    # -- what it may -----------------------------------------------------------------------------------------------

    @property
    def seen(self) -> Seen:
        """The store as far as `who` may see it."""
        return self.desk.seen

    @property
    def context(self) -> PagesContext:
        """The daemon."""
        return self.desk.context

    @property
    def reads_all(self) -> bool:
        """Whether figures of the whole store are shown."""
        return self.who.may(Scope.READ)

    @property
    def is_admin(self) -> bool:
        """Whether it may do what concerns the store as a whole."""
        return self.who.may(Scope.ADMIN)

    def require_admin(self, what: str) -> None:
        """Raises NotPermitted."""
        if not self.is_admin:
            raise NotPermitted(f"{what} needs the scope 'admin' of the whole store; this credential does not have it")

    def did(self, operation: str, what: str, outcome: LeptonError | str = "ok") -> None:
        """Into the audit log."""
        self.context.access.audit(self.who, operation, what, outcome, self.address)

    # -- what it asks ----------------------------------------------------------------------------------------------

    def number(self, name: str, default: int = 0) -> int:
        """A row number or the like of the query. Raises BadInput."""
        text = self.query.get(name, "")
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 15:
            raise BadInput(f"{name} is {text[:40]!r}: give a whole number")
        return int(text)

    def version(self) -> tuple[Any, str]:
        """(pages_seen.Name, commit) of the path. Raises RefMissing, BadInput."""
        return self.seen.version(self.who, self.path["kind"], self.path["name"], self.path["ref"])

    def dataset(self) -> Dataset:
        """The version of the path, to read rows of."""
        return self.seen.dataset(*self.version())

    # -- how it is answered ----------------------------------------------------------------------------------------

    def page(self, template: str, status: int = 200, **variables: Any) -> Response:
        """A page, with what every page has."""
        return self.desk.renderer.page(template, status, {"ask": self, **variables})

    def fragment(self, template: str, **variables: Any) -> str:
        """A part of a page, for the script that refreshes it."""
        return self.desk.renderer.text(template, {"ask": self, **variables})

    def see_other(self, path: str) -> Response:
        """After a form: the browser gets `path`."""
        return RedirectResponse(path, status_code=303)

    def link(self, *parts: object, **query: object) -> Whole:
        """/ui/… of parts that are safe in a path, and a query."""
        told = {name: value for name, value in query.items() if value not in (None, "")}
        path = "/".join(["/ui", *(str(part) for part in parts)])
        return Whole(f"{path}?{urlencode(told)}" if told else path)

    @property
    def form_token(self) -> str:
        """What stands in every form of this session."""
        return self.session.form_token if self.session else ""

    @property
    def form_cookie(self) -> str:
        """Name of the cookie that binds the form for signing in to this browser."""
        return f"{self.cookie}-form"
