"""What the pages ask of the daemon, and nothing else: each attribute is a part of the daemon.

A part that a daemon does not have is None: its page says so, and everything else works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request

from leptonstore.cache import HotCache
from leptonstore.daemon.access import Access
from leptonstore.daemon.http.pages_session import Sessions
from leptonstore.daemon.jobs import Jobs
from leptonstore.daemon.metrics import Metrics
from leptonstore.daemon.service import Service
from leptonstore.daemon.tls import certificate_name
from leptonstore.daemon.tokens import TokenRing
from leptonstore.store import Store

CACHE_FIGURE = "lepton_hot_cache_lookups"


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
    access: Access
    metrics: Metrics
    sessions: Sessions = field(default_factory=Sessions)
    url: str = ""
    anonymous: bool = False
    certificate: Callable[[Request], str | None] = _no_certificate
    jobs: Jobs | None = None
    tokens: TokenRing | None = None
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
    jobs: Jobs | None = None,
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
