"""Every kind of job."""

from __future__ import annotations

from typing import Any

from leptonstore.daemon.maintenance.work import Kind, Option, Work
from leptonstore.errors import BadInput, listed
from leptonstore.store import Store
from leptonstore.store.gc import collect

_STAGES = {"mark": "chunks", "compare": "steps"}


def _gc(store: Store, work: Work) -> dict[str, Any]:
    def tell(what: str, done: int, total: int) -> None:
        work.tell(done, total, _STAGES.get(what, "packs"), what)

    return collect(store, work.options["dry_run"], work.options["repack"], tell).to_json()


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
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}


def kind_of(name: object) -> Kind:
    """The kind of that name. Raises BadInput."""
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise BadInput(f"there is no job of kind {str(name)[:80]!r}; there is: {listed(sorted(KINDS))}")
    return kind
