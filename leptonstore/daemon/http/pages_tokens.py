"""Tokens: which there are, making one (its text is told once, on the page that made it), and revoking one. Only for administrators."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from leptonstore.daemon.access import Grant
from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.daemon.operations import Scope
from leptonstore.dataset.refs import check_name
from leptonstore.errors import BadInput, LeptonError, NotFound
from leptonstore.format.commit import KINDS

LIVES = (("1", "1 day"), ("30", "30 days"), ("90", "90 days"), ("365", "1 year"), ("", "does not expire"))
SCOPES = (
    (Scope.READ, "look at it and load it"),
    (Scope.WRITE, "also add versions, branches and tags"),
    (Scope.ADMIN, "also jobs, tokens and settings; for the whole store only"),
)


@dataclass(frozen=True)
class TokenRow:
    """A token for people. what: "token" or "certificate NAME"."""

    id: str
    name: str
    grants: tuple[str, ...]
    made: float
    until: float | None
    author: str
    what: str
    expired: bool


def tokens(ask: Ask) -> Response:
    """The page."""
    ask.require_admin("tokens")
    return _page(ask)


def add(ask: Ask) -> Response:
    """POST: a new token; the answer shows its text, and nothing does after that."""
    ask.require_admin("tokens")
    if ask.context.tokens is None:
        raise NotFound("this daemon keeps no tokens")
    name = ask.form.get("name", "").strip()
    try:
        grants = _grants(ask)
        days = ask.form.get("days", "30")
        if days not in dict(LIVES):
            raise BadInput("choose how long the token is good for")
        lifetime = float(days) * 86_400 if days else None
        token, text = ask.context.tokens.add(name, grants, lifetime, ask.who.name)
    except BadInput as error:
        ask.did("token add", name[:64], error)
        return _page(ask, problem=ask.desk.told(error), status=400)
    ask.did("token add", f"{token.id} {name}")
    return _page(ask, made=_row(token), text=text)


def revoke(ask: Ask) -> Response:
    """POST: nobody gets in with it any more; its sessions end with their next request."""
    ask.require_admin("tokens")
    if ask.context.tokens is None:
        raise NotFound("this daemon keeps no tokens")
    id = str(ask.path["id"])
    try:
        ask.context.tokens.revoke(id)
    except LeptonError as error:
        ask.did("token revoke", id[:40], error)
        raise
    ask.context.revoked(id)
    ask.did("token revoke", id)
    return ask.see_other(ask.link("tokens", revoked=id))


def _page(ask: Ask, problem: str = "", made: TokenRow | None = None, text: str = "", status: int = 200) -> Response:
    ring = ask.context.tokens
    rows = [_row(token) for token in ring.all()[: bounds.TOKENS_MAX]] if ring is not None else []
    names = sorted({name.name for kind in KINDS for name in ask.seen.names(ask.who, kind)})
    return ask.page(
        "tokens.html.j2", status, tokens=rows, known=ring is not None, problem=problem, made=made, text=text, lives=LIVES,
        scopes=SCOPES, names=names[: bounds.NAMES_PAGE], form=ask.form if problem else {},
        revoked=ask.query.get("revoked", ""), damaged=len(getattr(ring, "damaged", ())), own=ask.who.id,
    )  # fmt: skip


def _grants(ask: Ask) -> list[Grant]:
    """What the form grants. Raises BadInput."""
    scope = ask.form.get("scope", "")
    if scope not in [one.value for one, _ in SCOPES]:
        raise BadInput("choose what the token allows")
    if ask.form.get("of") != "some":
        return [Grant(Scope(scope))]
    if scope == Scope.ADMIN:
        raise BadInput("the scope 'admin' is for the whole store: choose another, or the whole store")
    names = [check_name(name, "dataset name") for name in ask.form.get("datasets", "").replace(",", " ").split()]
    if not names:
        raise BadInput("name the datasets that the token is for, or choose the whole store")
    return [Grant(Scope(scope), name) for name in dict.fromkeys(names)]


def _row(token: Any) -> TokenRow:
    until = None if token.expires_ns is None else token.expires_ns / 1e9
    what = f"certificate {token.certificate}" if token.certificate else "token"
    grants = tuple(_told(grant) for grant in token.grants)
    return TokenRow(
        token.id, token.name, grants, token.created_ns / 1e9, until, token.author, what,
        until is not None and until < time.time(),
    )  # fmt: skip


def _told(grant: Grant) -> str:
    return f"{grant.scope.value} {grant.dataset}" if grant.dataset else f"{grant.scope.value} everything"
