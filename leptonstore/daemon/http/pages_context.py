"""What the pages ask of the daemon, and nothing else: each attribute is a part of the daemon, by the interface that the pages use.

A part that a daemon does not have is None: its page says so, and everything else works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starlette.requests import Request

from leptonstore.cache import HotCache
from leptonstore.daemon.access import Access, Grant, Principal
from leptonstore.daemon.http.pages_session import Sessions
from leptonstore.daemon.metrics import Metrics
from leptonstore.daemon.operations import Operation
from leptonstore.daemon.service import Service
from leptonstore.daemon.tls import certificate_name
from leptonstore.errors import LeptonError
from leptonstore.store import Store

CACHE_FIGURE = "lepton_hot_cache_lookups"


class Gate(Protocol):
    """Part of access.Access."""

    def authenticate(self, authorization: str | None, certificate: str | None, address: str) -> Principal:
        """Who asks. Raises NotAuthenticated, TooBusy, TierUnavailable."""

    def charge(self, principal: Principal, operation: Operation, bytes: int = 0, address: str = "") -> None:
        """Count a request against its limits. Raises TooBusy."""

    def audit(
        self,
        principal: Principal | None,
        operation: str,
        what: str = "",
        outcome: LeptonError | str = "ok",
        address: str = "",
    ) -> None:
        """Write down what somebody did, or was not let do."""


class Counted(Protocol):
    """Part of metrics.Metrics."""

    def snapshot(self) -> dict[str, Any]:
        """Figures of now."""


class Worker(Protocol):
    """Part of jobs.Jobs."""

    def start(self, kind: str, options: Mapping[str, Any] | None = None, by: str = "") -> Any:
        """Begin a job. Raises BadInput, Conflict, TooBusy."""

    def list(self) -> Sequence[Any]:
        """Every job that is remembered."""

    def stop(self, id: str) -> Any:
        """Ask one to end. Raises NotFound."""


class Ring(Protocol):
    """Part of tokens.TokenRing."""

    def all(self) -> Sequence[Any]:
        """Those that can be read."""

    def add(
        self, name: str, grants: Sequence[Grant], lifetime_s: float | None = None, author: str = ""
    ) -> tuple[Any, str]:
        """A new one, and its text, which nobody can tell again. Raises BadInput, StoreFull."""

    def revoke(self, token_id: str) -> None:
        """From now on nobody gets in with it."""


def _alone() -> Mapping[str, Any] | None:
    return None


def _no_certificate(request: Request) -> str | None:
    return None


@dataclass
class PagesContext:
    """store: the one that is served. name: as its URL says. url: lepton://host:port/name, for people to copy.

    anonymous: whether requests without a credential may see something. certificate: the name that TLS verified of a request's client.
    cluster: what cluster.Cluster.snapshot tells; None when it stands alone. revoked: is told the id of a token that is no longer good.
    cache: the hot cache of the host, which rows are read through.
    """

    store: Store
    name: str
    access: Gate
    metrics: Counted
    sessions: Sessions = field(default_factory=Sessions)
    url: str = ""
    anonymous: bool = False
    certificate: Callable[[Request], str | None] = _no_certificate
    jobs: Worker | None = None
    tokens: Ring | None = None
    revoked: Callable[[str], None] = lambda id: None
    audit_file: Path | None = None
    cluster: Callable[[], Mapping[str, Any] | None] = _alone
    cache: HotCache | None = None


def context_of(
    service: Service,
    access: Access,
    metrics: Metrics,
    *,
    url: str = "",
    anonymous: bool = False,
    jobs: Worker | None = None,
    cluster: Callable[[], Mapping[str, Any] | None] = _alone,
) -> PagesContext:
    """The pages of a daemon made of these parts. Hot cache figures become figures of `metrics`.

    context = context_of(service, access, metrics, url="lepton://…", jobs=jobs, cluster=cluster.snapshot)
    pages = Pages(context)                                          its routes go to the control plane; close it with the daemon
    context.sessions.sign_in_path(f"Bearer {local_token}")          after http://host:port: signs in once
    """
    cache = service.cache
    if cache is not None:
        metrics.counter(CACHE_FIGURE, "Look-ups in the hot cache", lambda: _lookups(cache), "outcome")
    return PagesContext(
        service.store,
        service.name,
        access,
        metrics,
        url=url,
        anonymous=anonymous,
        certificate=_certificate,
        jobs=jobs,
        tokens=access.tokens.ring,
        revoked=access.tokens.forget,
        audit_file=None if access.audit_log is None else access.audit_log.path,
        cluster=cluster,
        cache=cache,
    )


def _lookups(cache: HotCache) -> Mapping[str, float]:
    told = cache.counts()
    return {"hit": float(told.get("hits", 0)), "miss": float(told.get("misses", 0))}


def _certificate(request: Request) -> str | None:
    return certificate_name(request.scope.get("state", {}).get("certificate"))
