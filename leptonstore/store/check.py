"""`lepton check`: is everything that was acknowledged still there and still what it was?

Three passes: the structure of every pack that the log lists; what every ref reaches; and, with `read_data`, every byte of every
record. Each finding names the pack, the chunk and the rows of the datasets that it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leptonstore.digest import Digest
from leptonstore.errors import ChunkCorrupt, FormatTooNew, PackDamaged
from leptonstore.store import reader
from leptonstore.store.store import Store
from leptonstore.store.walk import walk

PLACES_MAX = 20  # rows named for one finding: enough to see what it is about


@dataclass
class Problem:
    """One finding. `digest` is empty when it concerns a pack's structure; `places` says which rows it costs."""

    kind: str  # "pack", "chunk", "missing"
    what: str
    pack: str = ""
    digest: str = ""
    places: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For people."""
        where = "; ".join(self.places) if self.places else "no dataset uses it"
        return f"{self.what} [{where}]"


@dataclass
class CheckReport:
    """What a check looked at and found. Unlisted packs are leftovers of interrupted writers: harmless."""

    packs: int = 0
    records: int = 0
    bytes_read: int = 0
    refs: int = 0
    unlisted_packs: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**vars(self), "clean": self.clean, "problems": [vars(problem) for problem in self.problems]}


def check_store(
    store: Store, read_data: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> CheckReport:
    """Check `store` as of now. `progress(done packs, all packs)`. Never changes anything; any number may run."""
    store.refresh()
    report = CheckReport()
    listed = dict(store.state.packs)
    # Chunks that cannot be had, and the problem that says why; then the packs whose structure is damaged.
    bad: dict[Digest, Problem] = {}
    in_damaged: dict[str, Problem] = {}
    for done, (pack, record) in enumerate(sorted(listed.items())):
        progress(done, len(listed))
        report.packs += 1
        try:
            rows = reader.read_footer(store.tier, pack, store.config.store_id, record.bytes)
        except (PackDamaged, FormatTooNew) as error:
            in_damaged[pack] = Problem("pack", str(error), pack)
            report.problems.append(in_damaged[pack])
            rows = reader.salvage_rows(store.tier, pack)
        report.records += len(rows)
        for row in rows if read_data else ():
            report.bytes_read += row.end - row.offset
            try:
                reader.read_record(store.tier, pack, row)
            except ChunkCorrupt as error:
                bad[row.digest] = Problem("chunk", str(error), pack, row.digest.hex())
                report.problems.append(bad[row.digest])
    progress(len(listed), len(listed))
    _check_refs(store, report, bad, in_damaged)
    report.unlisted_packs = sum(1 for pack in store.tier.packs() if pack not in listed)
    return report


def _check_refs(store: Store, report: CheckReport, bad: dict[Digest, Problem], in_damaged: dict[str, Problem]) -> None:
    """Walk every ref; add what is missing, and name the rows that each problem costs."""
    seen: set[Digest] = set()
    for name, record in sorted(store.state.refs.items()):
        report.refs += 1
        for reached in walk(store, record.commit, seen):
            problem = bad.get(reached.digest)
            place = store.locate(reached.digest)
            if problem is None and reached.error is not None:
                problem = Problem("missing", str(reached.error), place.pack if place else "", reached.digest.hex())
                bad[reached.digest] = problem
                report.problems.append(problem)
            for found in (problem, in_damaged.get(place.pack) if place else None):
                if found is not None and len(found.places) < PLACES_MAX:
                    text = reached.place(name)
                    if text not in found.places:
                        found.places.append(text)
