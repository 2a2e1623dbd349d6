"""`lepton check`: is everything that was acknowledged still there and still what it was?

Three passes: the structure of every pack that the log lists; with `read_data`, every byte of every record, or of a random sample of
the packs; and what every version reaches. Each finding names the pack, the chunk and the rows of the datasets that it costs.

Memory does not grow with the store: findings are listed up to CHECK_PROBLEMS_MAX and then counted, and what was reached already is
remembered in a bounded set (what falls out of it is only looked at again).
"""

from __future__ import annotations

import math
import random
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.errors import BadInput
from leptonstore.store.log import PackRecord
from leptonstore.store.scan import examine_all
from leptonstore.store.store import Store
from leptonstore.store.versions import all_versions
from leptonstore.store.walk import walk

PLACES_MAX = limits.PLACES_MAX


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
    """What a check looked at and found. Unlisted packs are leftovers of interrupted writers: harmless.

    read_share: how much of all packs' bytes was read, from 0 to 1; the same `seed` draws the same sample again.
    problems_more: findings beyond those that are listed in `problems`.
    """

    packs: int = 0
    records: int = 0
    bytes_read: int = 0
    bytes_all: int = 0
    read_share: float = 0.0
    seed: int = 0
    refs: int = 0
    versions: int = 0
    unlisted_packs: int = 0
    problems: list[Problem] = field(default_factory=list)
    problems_more: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong, as far as it was looked at."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**vars(self), "clean": self.clean, "problems": [vars(problem) for problem in self.problems]}

    def add(self, problem: Problem) -> bool:
        """Keep a finding, or only count it when there are too many."""
        if len(self.problems) < limits.CHECK_PROBLEMS_MAX:
            self.problems.append(problem)
            return True
        self.problems_more += 1
        return False


class Recent(set[Digest]):
    """A set that forgets: it holds between SEEN_MAX/2 and SEEN_MAX of the newest members.

    For `walk`, which may meet again what fell out: the work is repeated, the result is the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._older: set[Digest] = set()

    def __contains__(self, item: object) -> bool:
        return super().__contains__(item) or item in self._older

    def add(self, item: Digest) -> None:
        """As set.add."""
        super().add(item)
        if len(self) > limits.SEEN_MAX // 2:
            self._older = set(self)
            self.clear()


def check_store(
    store: Store,
    read_data: bool | float = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    seed: int | None = None,
) -> CheckReport:
    """Check `store` as of now; never changes anything; any number may run.

    read_data: False (structure and references), True (every byte too), or the share of packs to read, from 0 to 1.
    progress(done bytes, all bytes) is called from several threads, one at a time. seed: which packs a share picks.
    Raises BadInput for a share out of range, NotPermitted when this user may not read the store.
    """
    if not 0 <= float(read_data) <= 1:
        raise BadInput(f"share to read is {read_data}: it must be from 0 to 1 (or 0% to 100%)")
    store.refresh()
    listed = sorted(store.state.packs.items())
    report = CheckReport(seed=secrets.randbits(32) if seed is None else seed)
    read = _sample(listed, float(read_data), report.seed)
    report.bytes_all = sum(record.bytes for _, record in listed)
    report.read_share = sum(record.bytes for pack, record in listed if pack in read) / max(1, report.bytes_all)
    bad: dict[tuple[Digest, str], Problem] = {}
    in_damaged: dict[str, Problem] = {}
    told = _Told(progress, report.bytes_all)
    for found in examine_all(store, ((pack, record, pack in read) for pack, record in listed), told.read):
        if found.damaged:
            store.refresh()
            if found.pack not in store.state.packs:
                continue  # garbage collection removed it meanwhile
        report.packs += 1
        report.records += found.records
        report.bytes_read += found.bytes_read
        if found.why is not None:
            in_damaged[found.pack] = Problem("pack", str(found.why), found.pack)
            report.add(in_damaged[found.pack])
        for row, error in found.corrupt:
            problem = Problem("chunk", str(error), found.pack, row.digest.hex())
            if report.add(problem):
                bad[row.digest, found.pack] = problem
    _check_versions(store, report, bad, in_damaged)
    report.unlisted_packs = sum(1 for pack in store.tier.packs() if pack not in store.state.packs)
    return report


def _sample(listed: list[tuple[str, PackRecord]], share: float, seed: int) -> set[str]:
    """The packs whose data is read."""
    count = math.ceil(share * len(listed))
    return set(random.Random(seed).sample([pack for pack, _ in listed], count))


class _Told:
    """Adds up progress from several threads."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._lock = threading.Lock()

    def read(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(min(self._done, self._total), self._total)


def _check_versions(
    store: Store, report: CheckReport, bad: dict[tuple[Digest, str], Problem], in_damaged: dict[str, Problem]
) -> None:
    """Walk every version; add what is missing, and name the rows that each problem costs."""
    more = report.problems_more
    missing = _walk_versions(store, report, bad, in_damaged)
    if missing:
        # The index may have been filled from a damaged file that somebody has replaced since: look at the packs themselves.
        store.reindex()
        report.problems_more = more
        missing = _walk_versions(store, report, bad, in_damaged)
    for problem in missing:
        report.add(problem)


def _walk_versions(
    store: Store, report: CheckReport, bad: dict[tuple[Digest, str], Problem], in_damaged: dict[str, Problem]
) -> list[Problem]:
    """Add places to the problems that are known, and return those that nobody knew."""
    seen = Recent()
    new: dict[Digest, Problem] = {}
    report.refs, report.versions, more = len(store.state.refs), 0, report.problems_more
    for version in all_versions(store):
        report.versions += 1
        for reached in walk(store, version.commit, seen):
            name = store.stored_name(reached.digest)
            place = store.locate(reached.digest)
            pack = place.pack if place else ""
            problem = bad.get((name, pack)) or new.get(name)
            if problem is None and reached.error is not None:
                problem = Problem("missing", str(reached.error), pack, reached.digest.hex())
                if len(new) < limits.CHECK_PROBLEMS_MAX:
                    new[name] = problem
                else:
                    more += 1
            for found in (problem, in_damaged.get(pack)):
                if found is not None and len(found.places) < PLACES_MAX:
                    text = reached.place(version.label)
                    if text not in found.places:
                        found.places.append(text)
    report.problems_more = more
    return list(new.values())
