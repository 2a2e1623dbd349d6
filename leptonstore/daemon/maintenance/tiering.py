"""The tier policy as a job: what `lepton tier plan` says is moved, some packs at a time.

A stop comes between two batches, each of which is published and its old copies deleted: nothing is half moved. Killed within one, copies
are left that the log does not count on; the next run uses or removes them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from leptonstore.daemon.maintenance import bounds
from leptonstore.daemon.maintenance.pace import Pace
from leptonstore.daemon.maintenance.work import Work
from leptonstore.store import Store
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.reads import FILE, halve_reads, load_reads


def move(store: Store, work: Work) -> dict[str, Any]:
    """See store/moves.py."""
    reads = store.cache_path(FILE)
    plan = plan_for(store, load_reads(reads))
    total = sum(one.bytes for one in plan.moves)
    pace, done, why = Pace(work, work.options["bytes_per_s"]), 0, Counter[str]()
    result = {
        "planned": len(plan.moves),
        "moved": 0,
        "bytes_copied": 0,
        "deleted": 0,
        "skipped": 0,
        "notes": plan.notes[: bounds.FINDINGS_MAX],
    }
    work.tell(0, total, "bytes")
    for first in range(0, 0 if work.options["dry_run"] else len(plan.moves), bounds.MOVES_BATCH):
        batch = plan.moves[first : first + bounds.MOVES_BATCH]
        report = apply_moves(store, batch)
        for name in ("moved", "bytes_copied", "deleted", "skipped"):
            result[name] += getattr(report, name)
        why.update(report.why)
        done += sum(one.bytes for one in batch)
        work.tell(done, total, "bytes", f"{result['moved']:,} of {len(plan.moves):,} packs moved")
        pace.spend(report.bytes_copied)
    if not work.options["dry_run"]:
        halve_reads(reads)
    return {**result, "why": dict(why), "bytes_before": plan.before, "bytes_after": plan.after}
