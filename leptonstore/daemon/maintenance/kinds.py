"""Every kind of job."""

from __future__ import annotations

from typing import Any

from leptonstore.daemon.maintenance import bounds
from leptonstore.daemon.maintenance.checking import check
from leptonstore.daemon.maintenance.checkpoint import checkpoint
from leptonstore.daemon.maintenance.quotas import measure_all
from leptonstore.daemon.maintenance.scrub import scrub
from leptonstore.daemon.maintenance.tiering import move
from leptonstore.daemon.maintenance.work import Kind, Option, Work
from leptonstore.errors import BadInput, listed
from leptonstore.store import Store
from leptonstore.store.gc import collect

_PACE = "bytes per second that are read or copied at most (0: as fast as it goes)"
_STAGES = {"mark": "chunks", "compare": "steps"}


def _gc(store: Store, work: Work) -> dict[str, Any]:
    def tell(what: str, done: int, total: int) -> None:
        work.tell(done, total, _STAGES.get(what, "packs"), what)

    done = collect(store, work.options["dry_run"], work.options["repack"], tell).to_json()
    return done if work.options["dry_run"] else {**done, "quotas": measure_all(store, work)}


_ALL = (
    Kind(
        "gc",
        "remove what no version, reader or writer needs",
        _gc,
        {
            "dry_run": Option(bool, False, "only say what would be done"),
            "repack": Option(bool, True, "copy live data out of packs that are mostly garbage, or small"),
        },
    ),
    Kind(
        "check",
        "find what is damaged or missing, in every tier",
        check,
        {
            "read_data": Option(float, 0.0, "the share of the packs of which every byte is read", 0, 1),
            "seed": Option(int, -1, "which packs a share picks: the seed that an earlier check reported", -1, 1 << 32),
        },
    ),
    Kind(
        "scrub",
        "read and check every byte at a set pace, and heal copies from other tiers",
        scrub,
        {
            "bytes_per_s": Option(int, bounds.SCRUB_BYTES_PER_S, _PACE, 0, bounds.BYTES_PER_S_MAX),
            "heal": Option(bool, True, "replace a damaged copy where another tier has a whole one"),
        },
    ),
    Kind(
        "tiers",
        "move packs between tiers as the tier policy says",
        move,
        {
            "bytes_per_s": Option(int, 0, _PACE, 0, bounds.BYTES_PER_S_MAX),
            "dry_run": Option(bool, False, "only say what would be moved"),
        },
    ),
    Kind("quotas", "measure anew what datasets with a quota take", measure_all),
    Kind("index", "bring this host's index up to date, and write a snapshot of the log", checkpoint),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}


def kind_of(name: object) -> Kind:
    """The kind of that name. Raises BadInput."""
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise BadInput(f"there is no job of kind {str(name)[:80]!r}; there is: {listed(sorted(KINDS))}")
    return kind
