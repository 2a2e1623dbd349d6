"""What a daemon is made of, as its settings say: the store, the hot cache, who may ask, and where its logs go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from leptonstore.cache import HotCache
from leptonstore.cache.directory import usual_place
from leptonstore.daemon.access import Access, AccessSettings
from leptonstore.daemon.audit import AuditLog
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.rates import Rate, RateLimits
from leptonstore.daemon.settings import Settings
from leptonstore.dataset.cached import usual_budget_bytes
from leptonstore.errors import BadInput
from leptonstore.store import Store

BURST_S = 2.0  # a client that was silent may have so many seconds' worth of its rate at once


def hot_cache_of(settings: Settings, store: Store, tell: Callable[[str], None]) -> HotCache | None:
    """The hot cache that readers of this host share; None where none is wanted, or none can be used (which `tell` is told)."""
    if settings.cache_bytes == 0:
        return None
    path = Path(settings.cache) if settings.cache else usual_place()
    budget: int | None = settings.cache_bytes
    if budget == -1:
        budget = None if (path / "table").exists() else usual_budget_bytes(path)
    cache = HotCache(path, budget, ram_only=store.sealer is not None, on_problem=tell)
    return cache if cache.usable else None


def access_of(settings: Settings, store: Store, local_token: str | None) -> Access:
    """Who may ask, and for how much. Raises BadInput when the audit log cannot be written."""
    return Access.of(store, access_settings(settings), audit_log_of(settings), local_token)


def access_settings(settings: Settings) -> AccessSettings:
    """What `Access` takes."""
    usual = RateLimits()
    requests, sent = settings.requests_rate, settings.bytes_rate
    rates = RateLimits(
        principal_requests=Rate(requests, BURST_S * requests) if requests else usual.principal_requests,
        principal_bytes=Rate(sent, BURST_S * sent) if sent else usual.principal_bytes,
    )
    return AccessSettings((Grant(Scope.READ),) if settings.anonymous == "read" else (), rates)


def audit_log_of(settings: Settings) -> AuditLog:
    """Where writes and denials are written down. A folder that a user names has to be there; the usual one is made.

    Raises BadInput when it cannot be written.
    """
    if settings.audit_log:
        return AuditLog(settings.audit_log)
    folder = state_folder() / "audit"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"the audit log {folder} cannot be made: {error.strerror}; say another place with --audit-log"
        ) from None
    return AuditLog(folder / f"{settings.name}.jsonl")


def state_folder() -> Path:
    """Of this user, for what programs keep and nobody edits ($XDG_STATE_HOME/lepton)."""
    named = os.environ.get("XDG_STATE_HOME", "")
    return (Path(named) if named.startswith("/") else Path.home() / ".local" / "state") / "lepton"
