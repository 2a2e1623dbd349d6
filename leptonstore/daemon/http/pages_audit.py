"""The end of the audit log, and the members of the cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.responses import Response

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.errors import NotPermitted

_BYTES_MAX = 256 << 10  # of the file that are read: some 1,200 lines


def audit(ask: Ask) -> Response:
    """Writes and denials, the newest first."""
    ask.require_admin("audit log")
    file = ask.context.audit_file
    entries = tail(file, bounds.AUDIT_LINES) if file is not None else []
    denied = ask.query.get("denied") == "1"
    shown = [entry for entry in reversed(entries) if not denied or entry.get("outcome") != "ok"]
    return ask.page("audit.html.j2", entries=shown, known=file is not None, denied=denied)


def members(ask: Ask) -> Response:
    """The daemons that share this store's bucket, and what this one read from where."""
    if not ask.reads_all:
        raise NotPermitted("members of the cluster are shown to those who may read the whole store")
    told = ask.context.cluster()
    return ask.page("cluster.html.j2", told=told, sources=_sources(told or {}))


def _sources(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where parts of packs came from, as bars: from this daemon's own cache, from other members, from the bucket."""
    parts = told.get("parts", {})
    named = (("This daemon’s cache", "here"), ("Other members", "peer"), ("The bucket", "bucket"))
    rows = [(name, int(parts.get(key, 0)), int(parts.get(f"{key}_bytes", 0))) for name, key in named]
    peak = max(1, *(size for _, _, size in rows))
    return [
        {"name": name, "count": count, "bytes": size, "width": round(size / peak * 100, 2)}
        for name, count, size in rows
    ]


def tail(path: Path, lines: int) -> list[dict[str, Any]]:
    """The last entries of a file of JSON lines, and of the one before it when that was just begun; what is no entry is left out."""
    found: list[dict[str, Any]] = []
    for file in (path.with_name(f"{path.name}.1"), path):
        try:
            with open(file, "rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                opened.seek(max(0, size - _BYTES_MAX))
                data = opened.read(_BYTES_MAX)
        except OSError:
            continue
        whole = data.split(b"\n")[1 if size > _BYTES_MAX else 0 :]
        for line in whole:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
    return found[-lines:]
