"""The index checkpoint: the index of this host is brought up to the log, and the log gets a snapshot.

The index (store/index.py) is a cache: LMDB beside each host, which anybody rebuilds from the log and the packs' footers. What makes that
quick is a recent snapshot of the log (opening reads one, and the entries after it) and an index that is not far behind. So this is what a
checkpoint is here; nothing is lost without it, and its age is what its last record says.
"""

from __future__ import annotations

from typing import Any

from leptonstore.daemon.maintenance import bounds
from leptonstore.daemon.maintenance.work import Work
from leptonstore.store import Store


def checkpoint(store: Store, work: Work) -> dict[str, Any]:
    """Returns the sequence that the index is complete up to, that of the newest snapshot, and packs that could not be indexed."""
    before = store.indexed
    store.refresh()
    work.tell(1, 2, "steps", "the index is complete")
    snapshot = store.checkpoint(bounds.SNAPSHOT_AFTER_ENTRIES, bounds.SNAPSHOTS_KEPT)
    work.tell(2, 2, "steps")
    return {
        "sequence": store.state.sequence,
        "indexed": store.indexed,
        "behind": max(0, store.state.sequence - before),
        "snapshot": snapshot,
        "packs": len(store.state.packs),
        "packs_away": len(store.packs_away),
    }
