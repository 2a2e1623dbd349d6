"""`lepton check`: is everything that was acknowledged still there and still what it was?

Four passes: the structure of every pack that the log lists, in every tier that has a copy; with `read_data`, every byte
of every record of every copy, or of a random sample of the packs; the objects that references lead to (with `read_data`
their bytes); and what every version reaches. Each finding names the tier, the pack, the chunk and the rows of the
datasets that it costs. What another tier has whole costs none. What a tier has that does not answer is "unavailable":
neither missing nor damaged.

Memory does not grow with the store: findings are listed up to CHECK_PROBLEMS_MAX and then counted, and what was reached already is
remembered in a bounded set (what falls out of it is only looked at again).
"""

from __future__ import annotations

import contextlib
import math
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.errors import BadInput, NotPermitted, PackDamaged, TierUnavailable
from leptonstore.store.log import PackRecord
from leptonstore.store.placement import places_of
from leptonstore.store.references_check import ReferenceCheck
from leptonstore.store.scan import ExaminedPack, examine_all
from leptonstore.store.store import Store
from leptonstore.store.versions import all_versions
from leptonstore.store.walk import walk

PLACES_MAX = limits.PLACES_MAX


@dataclass
class Problem:
    """One finding. `digest` is empty when it concerns a pack's structure; `places` says which rows it costs.

    tier: the name of the one that it is in; empty when the store has one only. whole_in: another one that has it whole.
    """

    kind: str  # "pack", "chunk", "reference", "missing", "unavailable"
    what: str
    pack: str = ""
    digest: str = ""
    places: list[str] = field(default_factory=list)
    tier: str = ""
    whole_in: str = ""

    def line(self) -> str:
        """For people."""
        if self.whole_in:
            where = f"costs no row: tier {self.whole_in} has it whole"
        else:
            where = "; ".join(self.places) if self.places else "no dataset uses it"
        tier = f"tier {self.tier}: " if self.tier else ""
        return f"{tier}{self.what} [{where}]"


@dataclass
class CheckReport:
    """What a check looked at and found. Unlisted packs are leftovers of interrupted writers: harmless.

    bytes_all: of all packs, each once. bytes_read: of all copies that were read. read_share: how much of all packs' bytes was read,
    from 0 to 1; the same `seed` draws the same sample again.
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
    references: int = 0  # that were looked at: of chunks that no pack has
    unlisted_packs: int = 0
    problems: list[Problem] = field(default_factory=list)
    problems_more: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong, as far as it was looked at."""
        return not self.problems

    @property
    def damaged(self) -> bool:
        """Whether something is wrong beside tiers that do not answer."""
        return any(problem.kind != "unavailable" for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        told = {"clean": self.clean, "damaged": self.damaged}
        return {**vars(self), **told, "problems": [vars(problem) for problem in self.problems]}

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
    Raises BadInput for a share out of range, NotPermitted when this user may not read the store, TierUnavailable when its home does
    not answer; other tiers that do not are findings.
    """
    if not 0 <= float(read_data) <= 1:
        raise BadInput(f"share to read is {read_data}: it must be from 0 to 1 (or 0% to 100%)")
    with store.tier.waiting_once():
        return _check(store, float(read_data), progress, seed)


def _check(store: Store, share: float, progress: Callable[[int, int], None], seed: int | None) -> CheckReport:
    store.refresh()
    listed = sorted(store.state.packs.items())
    report = CheckReport(seed=secrets.randbits(32) if seed is None else seed)
    read = _sample(listed, share, report.seed)
    report.bytes_all = sum(record.bytes for _, record in listed)
    report.read_share = sum(record.bytes for pack, record in listed if pack in read) / max(1, report.bytes_all)
    findings = _Findings(store, report)
    expected = sum(record.bytes * max(1, len(places_of(store.state, pack))) for pack, record in listed)
    told = _Told(progress, report.bytes_all, expected)
    for found in examine_all(store, ((pack, record, pack in read) for pack, record in listed), told.read):
        if found.damaged or found.lacking:
            store.refresh()
            if found.pack not in store.state.packs:
                continue  # garbage collection removed it meanwhile
        findings.add(found)
    _check_references(store, report, findings, read)
    _check_versions(store, report, findings, told.again)
    report.unlisted_packs = _unlisted(store)
    return report


def _unlisted(store: Store) -> int:
    """Packs of the tiers that answer which no entry of the log lists."""
    found: set[str] = set()
    for at in range(len(store.tier.tiers)):
        with contextlib.suppress(*((TierUnavailable, NotPermitted) if len(store.tier.tiers) > 1 else ())):
            found |= store.tier.ask(at, lambda tier: {pack for pack in tier.packs() if pack not in store.state.packs})
    return len(found)


class _Findings:
    """What is known of copies, for whoever walks the versions: which problem a chunk of a pack has."""

    def __init__(self, store: Store, report: CheckReport) -> None:
        self._store, self._report = store, report
        self._several = len(store.tier.tiers) > 1
        self.chunks: dict[tuple[Digest, str], list[Problem]] = {}  # (name, pack) -> what costs rows
        self.packs: dict[str, list[Problem]] = {}
        self.tiers: dict[str, Problem] = {}  # URL of a tier that does not answer
        self._unseen: Counter[str] = Counter()  # URL -> packs of which it has a copy that could not be looked at
        self._alone: Counter[str] = Counter()  # of those, packs of which no other has a copy

    def _name(self, at: int | None) -> str:
        return self._store.placement.names[at] if self._several and at is not None else ""

    def add(self, found: ExaminedPack) -> None:
        """Keep what is wrong with the copies of a pack."""
        report = self._report
        report.packs += 1
        report.records += max((copy.records for copy in found.copies), default=0)
        whole = found.whole_in()
        for copy in found.copies:
            report.bytes_read += copy.bytes_read
            if copy.why is not None:
                problem = Problem(
                    "pack", str(copy.why), found.pack, tier=self._name(copy.at), whole_in=self._name(whole)
                )
                if report.add(problem) and whole is None:
                    self.packs.setdefault(found.pack, []).append(problem)
            for row, error in copy.corrupt:
                other = next((one.at for one in found.copies if one is not copy and one.holds(row.digest)), None)
                problem = Problem(
                    "chunk", str(error), found.pack, row.digest.hex(), [], self._name(copy.at), self._name(other)
                )
                if report.add(problem) and other is None:
                    self.chunks.setdefault((row.digest, found.pack), []).append(problem)
        for at in found.lacking:
            what = f"pack {found.pack} should be here, and its file is missing; run `lepton repair`"
            problem = Problem("pack", what, found.pack, tier=self._name(at), whole_in=self._name(whole))
            if report.add(problem) and whole is None:
                self.packs.setdefault(found.pack, []).append(problem)
        for silent in found.silent.values():
            self._unseen[silent.tier] += 1
            self._alone[silent.tier] += not found.copies
            self.unavailable(silent)

    def unavailable(self, error: TierUnavailable) -> Problem:
        """The finding of the tier that this error is about."""
        problem = self.tiers.get(error.tier)
        if problem is None:
            names = [tier.name for tier in self._store.placement.tiers if tier.url and tier.url == error.tier]
            problem = self.tiers[error.tier] = Problem("unavailable", str(error), tier=names[0] if names else "")
            self._report.add(problem)
        return problem

    def of(self, name: Digest, pack: str) -> list[Problem]:
        """The problems that cost the rows which need the chunk `name`, as far as it is in `pack`."""
        return self.chunks.get((name, pack), []) + self.packs.get(pack, [])

    def settle(self) -> None:
        """Say of tiers that do not answer how much could not be looked at."""
        for url, problem in self.tiers.items():
            if self._unseen[url]:
                count, alone = self._unseen[url], self._alone[url]
                problem.what += f"; {count:,} packs were not looked at there, of which {alone:,} are in no other tier"


def _check_references(store: Store, report: CheckReport, findings: _Findings, read: set[str]) -> None:
    """Add references that do not lead to what was imported: as their objects' keepers say, and of the packs in `read` by their bytes."""
    if not store.references.used:
        return
    check = ReferenceCheck(store)
    refused: set[str] = set()
    for pack in sorted(store.state.packs):
        try:
            for digest, error in check.broken(pack, pack in read):
                problem = Problem("reference", str(error), pack, digest.hex())
                if report.add(problem):
                    findings.chunks.setdefault((digest, pack), []).append(problem)
        except TierUnavailable as error:
            findings.unavailable(error)
        except NotPermitted as error:  # once for each root
            if str(error) not in refused:
                refused.add(str(error))
                report.add(Problem("unavailable", str(error)))
        except (PackDamaged, OSError):
            continue  # told already
    report.references = check.looked_at


def _sample(listed: list[tuple[str, PackRecord]], share: float, seed: int) -> set[str]:
    """The packs whose data is read."""
    count = math.ceil(share * len(listed))
    return set(random.Random(seed).sample([pack for pack, _ in listed], count))


class _Told:
    """Adds up progress from several threads: `expected` bytes of copies, told as shares of `total`."""

    def __init__(self, progress: Callable[[int, int], None], total: int, expected: int) -> None:
        self._progress, self._total, self._expected, self._done = progress, total, max(1, expected), 0
        self._lock = threading.Lock()

    def read(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(min(self._done * self._total // self._expected, self._total), self._total)

    def again(self) -> None:
        """Nothing more is to be read, but it goes on: whoever asked may want to stop it."""
        self.read(0)


def _check_versions(store: Store, report: CheckReport, findings: _Findings, alive: Callable[[], None]) -> None:
    """Walk every version; add what is missing, and name the rows that each problem costs."""
    more = report.problems_more
    missing = _walk_versions(store, report, findings, alive)
    if missing and not findings.tiers:
        # The index may have been filled from a damaged file that somebody has replaced since: look at the packs themselves.
        store.reindex()
        report.problems_more = more
        missing = _walk_versions(store, report, findings, alive)
    for problem in missing:
        report.add(problem)
    findings.settle()


def _walk_versions(store: Store, report: CheckReport, findings: _Findings, alive: Callable[[], None]) -> list[Problem]:
    """Add places to the problems that are known, and return those that nobody knew."""
    seen = Recent()
    new: dict[Digest, Problem] = {}
    report.refs, report.versions, more = len(store.state.refs), 0, report.problems_more
    for version in all_versions(store):
        report.versions += 1
        for number, reached in enumerate(walk(store, version.commit, seen)):
            if number % 1024 == 0:
                alive()
            name = store.stored_name(reached.digest)
            place = store.locate(reached.digest)
            pack = place.pack if place else ""
            problems = findings.of(name, pack)
            if isinstance(reached.error, TierUnavailable):
                problems.append(findings.unavailable(reached.error))
            elif name in new:
                problems.append(new[name])
            elif reached.error is not None and (name, pack) not in findings.chunks:
                problems.append(Problem("missing", str(reached.error), pack, reached.digest.hex()))
                if len(new) < limits.CHECK_PROBLEMS_MAX:
                    new[name] = problems[-1]
                else:
                    more += 1
            for found in problems:
                if len(found.places) < PLACES_MAX:
                    text = reached.place(version.label)
                    if text not in found.places:
                        found.places.append(text)
    report.problems_more = more
    return list(new.values())
