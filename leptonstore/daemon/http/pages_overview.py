"""The overview: what the store holds and takes, and what happens at this daemon now.

Figures of the whole store need a grant for all of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.daemon.http.pages_charts import Chart, time_chart
from leptonstore.daemon.http.pages_context import CACHE_FIGURE
from leptonstore.daemon.http.pages_jobs import jobs_shown
from leptonstore.daemon.http.pages_render import HEADERS
from leptonstore.process import charts
from leptonstore.store import Store
from leptonstore.store.placement import places_of
from leptonstore.store.usage import Usage

PARTS = ("figures", "traffic", "clients", "working")  # templates live_*.html.j2: what the script refreshes


@dataclass(frozen=True)
class TierFigures:
    """What the log says that one tier keeps. url: only for administrators."""

    name: str
    packs: int
    bytes: int
    share: float  # of the largest tier
    url: str


def overview(ask: Ask) -> Response:
    """The page."""
    return ask.page("overview.html.j2", **_figures(ask), names=_names(ask), parts=PARTS)


def live(ask: Ask) -> Response:
    """Its live parts as HTML, and in a sentence for those who listen."""
    figures = _figures(ask)
    parts = {name: ask.fragment(f"live_{name}.html.j2", **figures) for name in PARTS}
    return JSONResponse({"parts": parts, "said": _said(figures)}, headers=HEADERS)


def _figures(ask: Ask) -> dict[str, Any]:
    """All variables of the live parts."""
    told = ask.context.metrics.snapshot()
    measured = ask.desk.measures.usage() if ask.reads_all else None
    ask.seen.sequence()
    return {
        "told": told,
        "charts": _charts(told),
        "saved": _saved(measured.usage) if measured else None,
        "measured": measured,
        "measuring": ask.desk.measures.measuring(),
        "tiers": tiers(ask.context.store, ask.is_admin) if ask.reads_all else [],
        "cache": _cache(told),
        "clients": told.get("clients", [])[: bounds.CLIENTS_MAX] if ask.reads_all else [],
        "readers": told.get("readers", [])[: bounds.CLIENTS_MAX] if ask.reads_all else [],
        "jobs": [job for job in jobs_shown(ask) if job.running] if ask.is_admin else [],
        "members": (ask.context.cluster() or {}).get("members", ()) if ask.reads_all else (),
        "counts": ask.seen.kinds(ask.who),
        "sequence": ask.context.store.state.sequence,
        "now": time.time(),
    }


def _charts(told: Mapping[str, Any]) -> list[Chart]:
    series = told.get("series") or {}
    length = len(series.get("bytes_out", ()))
    if not length:
        return []
    moved = [("Sent", series["bytes_out"]), ("Received", series["bytes_in"])]
    asked = [("Requests", series["requests"]), ("Failed", series["errors"])]
    return [
        time_chart("moved", "Throughput", moved, lambda value: f"{charts.as_bytes(value)}/s", length, binary=True),
        time_chart("asked", "Requests", asked, lambda value: f"{value:,.1f}".removesuffix(".0") + "/s", length),
    ]


def _saved(usage: Usage) -> dict[str, Any]:
    """From what all versions would take apart to what they take here, as bars on one scale."""
    logical, plain, stored = sum(name.logical for name in usage.names), usage.plain_bytes, usage.live_bytes
    steps = [
        ("Every version by itself", logical, "plain"),
        ("Each chunk once", plain, _smaller(logical, plain, "deduplicated")),
        ("As stored", stored, _smaller(plain, stored, "compressed")),
    ]
    peak = max(1, *(size for _, size, _ in steps))
    return {
        "steps": [
            {"name": name, "bytes": size, "note": note, "width": round(size / peak * 100, 2)}
            for name, size, note in steps
        ],
        "ratio": logical / usage.live_bytes if usage.live_bytes else 1.0,
        "garbage": usage.garbage_bytes,
        "missing": usage.missing,
        "quota": usage.quota_bytes,
    }


def _smaller(before: int, after: int, how: str) -> str:
    """What a step saved."""
    if not after or before / after < 1.005:
        return "no smaller"
    return f"{charts.as_ratio(before / after)} {how}"


def tiers(store: Store, urls: bool) -> list[TierFigures]:
    """Of each tier, the packs that the log says it keeps."""
    state, placement = store.moment(), store.placement
    packs, sizes = dict.fromkeys(placement.names, 0), dict.fromkeys(placement.names, 0)
    for pack, record in state.packs.items():
        for name in places_of(state, pack):
            if name in sizes:
                packs[name] += 1
                sizes[name] += record.bytes
    peak = max(1, *sizes.values())
    where = {one.name: one.url or store.url for one in placement.tiers}
    return [
        TierFigures(name, packs[name], sizes[name], round(sizes[name] / peak * 100, 2), where[name] if urls else "")
        for name in placement.names
    ]


def _cache(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Hits of the host's hot cache, misses and their ratio; None without one."""
    found = (told.get("gauges") or {}).get(CACHE_FIGURE)
    if not isinstance(found, Mapping):
        return None
    hits, misses = float(found["hit"]), float(found["miss"])
    return {"hits": hits, "misses": misses, "ratio": hits / (hits + misses) if hits + misses else None}


def _names(ask: Ask) -> list[dict[str, Any]]:
    """The datasets that changed last."""
    found = sorted(ask.seen.names(ask.who, "dataset"), key=lambda name: -name.changed.sequence)
    return [{"name": name, "size": ask.seen.rows_of(name.head)} for name in found[:8]]


def _said(figures: Mapping[str, Any]) -> str:
    rates = figures["told"]["rates"]
    told = f"{charts.as_bytes(rates['bytes_out'])} sent and {charts.as_bytes(rates['bytes_in'])} received per second"
    if figures["clients"]:
        told += f", {len(figures['clients'])} clients"
    if figures["jobs"]:
        told += f", {len(figures['jobs'])} jobs at work"
    return told
