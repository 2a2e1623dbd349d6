"""The operations `token_add`, `token_ls` and `token_revoke`, as a running daemon does them and as `lepton token` does them offline.

    token_add {name, grants: ["read", "write:NAME"], lifetime_s?, certificate?}   -> {token, secret}
    token_ls {}                  -> {tokens: [token, ...], damaged: how many documents cannot be read}
    token_revoke {token: id or name}   -> {token}             token: TokenRing's documents without hashes, see Token.to_json

Who administers the whole store grants what it likes. Who administers some datasets (`admin:NAME`) grants what concerns only those, and
sees and revokes only what does: nobody gives more than they have. (What somebody granted outlives their own token: `author` says who it
was.)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from leptonstore.daemon.access import LOCAL
from leptonstore.daemon.arguments import Arguments
from leptonstore.daemon.live_tokens import LiveTokens
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant, Principal
from leptonstore.daemon.tokens import CERTIFICATE_CHARS_MAX, GRANTS_MAX, TOKEN_NAME_CHARS_MAX, TokenRing, choose
from leptonstore.errors import NotPermitted, listed
from leptonstore.store import Store
from leptonstore.store.remote_store import RemoteStore
from leptonstore.store.wire.messages import Request

if TYPE_CHECKING:
    from leptonstore.daemon.service import Service

OPS = ("token_add", "token_ls", "token_revoke")


def add_to(service: Service, tokens: LiveTokens) -> None:
    """Have `service` do these operations."""
    for op in OPS:
        service.add(op, lambda principal, request: act(tokens, principal, request))


def ask(store: Store, op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `op` answers: of a store that is open here, done here, by the user who runs this; of one behind a daemon, by that."""
    if isinstance(store, RemoteStore):
        return store.link.act(op, arguments)
    return act(LiveTokens(TokenRing.of(store)), LOCAL, Request(op, arguments))


def act(tokens: LiveTokens, principal: Principal, request: Request) -> dict[str, Any]:
    """The answer. Raises BadInput, NotFound, NotPermitted, StoreFull."""
    arguments = Arguments(request.op, request.arguments)
    if request.op == "token_add":
        return _add(tokens, principal, arguments)
    if request.op == "token_revoke":
        return _revoke(tokens, principal, arguments)
    now = time.time()
    mine = [token for token in tokens.ring.all() if _administers(principal, token.grants)]
    # Of what cannot be read nobody knows whom it concerns.
    damaged = len(tokens.ring.damaged) if principal.may(Scope.ADMIN) else 0
    return {"tokens": [token.to_json(now) for token in mine], "damaged": damaged}


def _add(tokens: LiveTokens, principal: Principal, arguments: Arguments) -> dict[str, Any]:
    name = arguments.text("name", most=TOKEN_NAME_CHARS_MAX)
    grants = [Grant.parse(text) for text in arguments.listed("grants", GRANTS_MAX) if isinstance(text, str)]
    lifetime_s = arguments.number("lifetime_s", 1, 1 << 40, None)
    certificate = arguments.text("certificate", "", most=CERTIFICATE_CHARS_MAX)
    if not _administers(principal, grants):
        beyond = listed(str(grant) for grant in grants if not _administers(principal, (grant,)))
        raise NotPermitted(f"this credential does not administer what {beyond} is about, so it cannot grant that")
    token, secret = tokens.ring.add(name, grants, lifetime_s, principal.name, certificate)
    tokens.forget(token.id)
    return {"token": token.to_json(time.time()), "secret": secret}


def _revoke(tokens: LiveTokens, principal: Principal, arguments: Arguments) -> dict[str, Any]:
    wanted = arguments.text("token", most=TOKEN_NAME_CHARS_MAX)
    mine = [token for token in tokens.ring.all() if _administers(principal, token.grants)]
    token = choose(mine, wanted)
    tokens.ring.revoke(token.id)
    tokens.forget(token.id)
    return {"token": token.to_json(time.time())}


def _administers(principal: Principal, grants: tuple[Grant, ...] | list[Grant]) -> bool:
    return all(principal.may(Scope.ADMIN, None if grant.scope is Scope.PEER else grant.dataset) for grant in grants)
