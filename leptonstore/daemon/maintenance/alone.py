"""One job of a kind at a time, among all daemons of a store: each shows a document while it works.

    jobs/<id>    a framed document of kind "job" with {"kind", "job", "by", "host", "pid", "began"}, held as the home holds locks

Who wants to begin shows its document first and then looks for others of its kind: of two that begin at once, at least one sees the
other, and whoever sees another takes its document back. (Both may. Neither ever works beside the other.) No clock is asked. Where a home
knows no locks (a store on fsspec, which has one writer) nothing keeps two daemons apart; no kind of job relies on it to be safe.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from leptonstore.daemon.maintenance import bounds
from leptonstore.errors import Conflict, FormatDamaged
from leptonstore.store import Store
from leptonstore.tiers.roles import HeldLock

FOLDER = "jobs"


def hold(store: Store, kind: str, job: str, by: str, began: float) -> HeldLock:
    """Show that a job of `kind` is at work, until it is released. Raises Conflict when there is one already."""
    body = {"kind": kind, "job": job, "by": by, "host": socket.gethostname(), "pid": os.getpid(), "began": began}
    lock = store.home.hold_lock(FOLDER, store.documents.encode("job", body))
    try:
        for name, other in at_work(store).items():
            if name != lock.name and other["kind"] == kind:
                raise Conflict(
                    f"a job of kind {kind!r} is at work already (of {other['by']}, on {other['host']}): let it end, or stop it there"
                )
    except BaseException:
        lock.release()
        raise
    return lock


def at_work(store: Store) -> dict[str, dict[str, Any]]:
    """Name of its document -> what it says, of each job that any daemon of the store is at. What does not parse says nothing."""
    found = {}
    for name, data in store.home.live_locks(FOLDER, bounds.JOB_BYTES_MAX).items():
        try:
            body = store.documents.parse(data, "job", f"job {name}")
        except FormatDamaged:
            continue
        if all(isinstance(body.get(key), str) for key in ("kind", "job", "by", "host")):
            found[name] = body
    return found
