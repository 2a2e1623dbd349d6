"""Every operation of the daemon: on which planes it is, and what a credential must allow for it.

This table is the only place that says so. Both planes refuse what is not in it, and the tests go through it with every kind of credential.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a credential allows. WRITE includes READ; ADMIN includes both, and what concerns the store as a whole."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"
    PEER = "peer"  # another daemon of the cluster: blocks of packs, and nothing else


class Of(StrEnum):
    """What the scope is asked of."""

    NOTHING = "nothing"  # anybody may call it, without a credential too
    ANY = "any"  # a credential with this scope for any dataset, or for the store; the answer holds only what it may see
    DATASET = "dataset"  # the dataset that the request names
    STORE = "store"  # the whole store: a credential that is limited to datasets does not do


@dataclass(frozen=True)
class Operation:
    """One operation. `call`: how Flight carries it ("action", "get", "put"), or the HTTP route "GET /path"."""

    name: str
    call: str
    scope: Scope
    of: Of
    writes: bool = False  # it goes into the audit log


_FLIGHT = (
    Operation("hello", "action", Scope.READ, Of.ANY),
    Operation("state", "action", Scope.READ, Of.ANY),
    Operation("find", "action", Scope.READ, Of.ANY),
    Operation("get", "get", Scope.READ, Of.ANY),
    Operation("rows", "get", Scope.READ, Of.DATASET),
    Operation("take", "get", Scope.READ, Of.DATASET),
    Operation("history", "get", Scope.READ, Of.ANY),
    Operation("lease", "action", Scope.READ, Of.ANY),
    Operation("release", "action", Scope.READ, Of.ANY),
    Operation("plan", "action", Scope.READ, Of.ANY),
    Operation("tell", "action", Scope.READ, Of.ANY),
    Operation("open", "action", Scope.WRITE, Of.ANY),
    Operation("put", "put", Scope.WRITE, Of.ANY),
    Operation("flush", "action", Scope.WRITE, Of.ANY, writes=True),
    Operation("publish", "action", Scope.WRITE, Of.ANY, writes=True),  # each ref that it moves: service.publish asks
    Operation("close", "action", Scope.WRITE, Of.ANY),
    Operation("append", "action", Scope.ADMIN, Of.STORE, writes=True),
    Operation("job", "action", Scope.ADMIN, Of.STORE, writes=True),
    Operation("jobs", "action", Scope.ADMIN, Of.STORE),
    Operation("stop", "action", Scope.ADMIN, Of.STORE, writes=True),  # of a job
    # Of what it administers: the whole store, or some datasets (token_requests.py).
    Operation("token_add", "action", Scope.ADMIN, Of.ANY, writes=True),
    Operation("token_ls", "action", Scope.ADMIN, Of.ANY),
    Operation("token_revoke", "action", Scope.ADMIN, Of.ANY, writes=True),
    Operation("block", "get", Scope.PEER, Of.STORE),
    Operation("member", "action", Scope.PEER, Of.STORE),
)

# Over HTTP alone (http/). What Flight carries is there too, as POST /v1/<name>.
_HTTP = (
    Operation("healthz", "GET /healthz", Scope.READ, Of.NOTHING),
    Operation("readyz", "GET /readyz", Scope.READ, Of.NOTHING),
    Operation("openapi", "GET /openapi.json", Scope.READ, Of.ANY),
    Operation("metrics", "GET /metrics", Scope.READ, Of.STORE),
    Operation("content", "GET /content", Scope.READ, Of.ANY),
    Operation("content.kind", "GET /content/{kind}", Scope.READ, Of.ANY),
    Operation("content.chunk", "GET /content/chunks/{digest}", Scope.READ, Of.ANY),
    Operation("content.version", "GET /content/{kind}/{version}", Scope.READ, Of.DATASET),
    Operation("content.rows", "GET /content/{kind}/{version}/rows", Scope.READ, Of.DATASET),
    Operation("content.value", "GET /content/{kind}/{version}/rows/{row}/{column}", Scope.READ, Of.DATASET),
    Operation("content.files", "GET /content/{kind}/{version}/files/{path}", Scope.READ, Of.DATASET),
)

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in (*_FLIGHT, *_HTTP)}
