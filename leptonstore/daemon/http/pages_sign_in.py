"""Signing in and out: a token that is pasted, or the one-time code of the URL that `lepton serve` prints."""

from __future__ import annotations

import hmac
import re
import secrets

from starlette.responses import Response

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.daemon.http.pages_session import Session
from leptonstore.errors import BadInput, NotAuthenticated, TooBusy

_LOCAL = re.compile(r"/ui(/[A-Za-z0-9._~%/@^-]*)?(\?[A-Za-z0-9._~%=&+-]*)?")


def form(ask: Ask) -> Response:
    """GET: the form; with ?code= of a one-time code, a session.

    Its answer is a page that goes on by itself: a redirect would still count as coming from wherever the URL was opened, and a browser
    keeps strict cookies from that.
    """
    code = ask.query.get("code", "")
    if code and ask.method == "GET":
        authorization = ask.context.sessions.redeem(code)
        if authorization is None:
            return _form(ask, "This link was used before, or is too old. Sign in with a token.", 401)
        return _welcome(ask, authorization, "/ui")
    return _form(ask)


def sign_in(ask: Ask) -> Response:
    """POST: a session for the token of the form."""
    if not hmac.compare_digest(ask.form.get("form_token", "").encode(), ask.cookies.get(ask.form_cookie, "-").encode()):
        return _form(ask, "This form is too old. Try again.", 403)
    token = ask.form.get("token", "").strip()
    if not token:
        return _form(ask, "Paste a token.", 400)
    try:
        return _welcome(ask, f"Bearer {token}", local_path(ask.form.get("next", "")))
    except NotAuthenticated as error:
        ask.context.access.audit(None, "sign in", "", error, ask.address)
        return _form(ask, "This token is not valid here: it may be mistyped, expired or revoked.", 401)
    except TooBusy as error:
        return _form(ask, f"Too many attempts. Try again in {max(1, round(error.retry_after_s))} s.", 429)


def sign_out(ask: Ask) -> Response:
    """POST: the session ends."""
    if ask.session is None:
        raise BadInput("there is no session to end")
    ask.context.sessions.end(ask.session)
    answer = ask.see_other("/ui/login?out=1")
    answer.delete_cookie(ask.cookie, path="/", secure=ask.secure, httponly=True, samesite="strict")
    return answer


def local_path(text: str) -> str:
    """Where to go after signing in: a page of ours, or the overview."""
    return (
        text
        if len(text) <= bounds.QUERY_CHARS_MAX and _LOCAL.fullmatch(text) and ".." not in text and "//" not in text
        else "/ui"
    )


def _welcome(ask: Ask, authorization: str, path: str) -> Response:
    """Raises NotAuthenticated, TooBusy."""
    who = ask.context.access.authenticate(authorization, None, ask.address)
    session: Session = ask.context.sessions.begin(authorization)
    ask.context.access.audit(who, "sign in", "", "ok", ask.address)
    answer = ask.see_other(path) if ask.method == "POST" else ask.page("welcome.html.j2", path=path, name=who.name)
    # No age: it ends with the browser, or when the daemon says so.
    answer.set_cookie(ask.cookie, session.secret, path="/", secure=ask.secure, httponly=True, samesite="strict")
    return answer


def _form(ask: Ask, problem: str = "", status: int = 200) -> Response:
    made = secrets.token_urlsafe(24)
    path = local_path(ask.query.get("next", "") or ask.form.get("next", ""))
    answer = ask.page(
        "login.html.j2", status, problem=problem, form_token=made, path=path, signed_out="out" in ask.query
    )
    answer.set_cookie(ask.form_cookie, made, path="/ui", secure=ask.secure, httponly=True, samesite="strict")
    return answer
