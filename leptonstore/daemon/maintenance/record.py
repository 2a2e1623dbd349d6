"""What is kept of maintenance in the store's home, so that every daemon of the store knows it, and the next one after a restart.

    maintenance/<kind>         a framed document of kind "maintenance": how the last job of that kind ended
    maintenance/scrub-place    where a scrub is

Hints: replaced without a look at what others write, and allowed to be lost; then a job is done once more.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from leptonstore.daemon.maintenance import bounds
from leptonstore.errors import FormatDamaged, FormatTooNew, LeptonError
from leptonstore.store import Store

_KIND = "maintenance"


def read(store: Store, name: str) -> dict[str, Any] | None:
    """What was kept under `name`; None when nothing was, or it cannot be read. Raises TierUnavailable or NotPermitted."""
    try:
        data = store.home.read_document(f"maintenance/{name}", bounds.RECORD_BYTES_MAX)
        return None if data is None else store.documents.parse(data, _KIND, f"maintenance/{name}")
    except (FormatDamaged, FormatTooNew):
        return None


def write(store: Store, name: str, body: dict[str, Any]) -> None:
    """Keep `body` (JSON-able). Where the disk is full, or the home does not answer, nothing is kept."""
    with suppress(LeptonError, OSError):
        data = store.documents.encode(_KIND, json.loads(json.dumps(body, default=str)))
        if len(data) <= bounds.RECORD_BYTES_MAX:
            store.home.replace_document(f"maintenance/{name}", data)
