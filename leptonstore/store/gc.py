"""Garbage collection: removes packs that nothing needs, while others write and read. It blocks nobody and uses no clock.

    look -> mark -> [repack] -> FENCE -> look -> mark -> RESCUE and remove (one log entry) -> delete the files

Invariants:
- From the log entry with its FENCE on, a condemned pack counts as absent for everybody (store/fences.py), until a RESCUE.
- A pack is removed only after a mark that began at its fence or later: whoever published before is seen by that mark, whoever
  publishes later held its work against the fence.
- Each chunk that is needed has one keeper, a pack that is not condemned; a pack that keeps nothing is garbage, also when it
  holds copies of what is needed. Two collections must not take each other's packs for keepers: an entry of garbage collection is appended
  only when none came since the state that was marked ("overtaken": look again). So the entries of all collections are one sequence.
- The entry comes before the files are deleted. A crash between leaves files that no entry lists, which a later collection condemns and
  removes like those of writers that died. Dead or alive is told by locks; but that is advice: a writer whose unlisted pack was
  condemned sees the fence and copies the records.

Roots: the heads of refs and what came before them up to a `forget` boundary, and the versions that live readers hold. What is reached is
a sorted file of digest prefixes (store/runs.py), joined with the packs' footers: memory does not grow with the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.errors import ChunkMissing, Conflict, Damaged, FormatDamaged, FormatTooNew, StoreFull
from leptonstore.store.fences import heads_of
from leptonstore.store.keepers import Keepers, choose_keepers, pieces_of
from leptonstore.store.leases import claimed_packs, leased_commits
from leptonstore.store.log import LogState, PackRecord, Proposal
from leptonstore.store.reach import Reach
from leptonstore.store.repack import plan_repack, repack
from leptonstore.store.runs import Keys, SortedRuns
from leptonstore.store.store import Store

FEATURE = "fences"  # format.framed.NAMED_FEATURES: who does not know fences must not write to such a store
Progress = Callable[[str, int, int], None]


class _Overtaken(Exception):
    """Another collection appended an entry since the state that was marked."""


@dataclass
class GcReport:
    """What a collection did, or with dry_run would do. Sizes are bytes."""

    dry_run: bool = False
    packs: int = 0  # listed when it began
    stored_bytes: int = 0  # of those
    live_bytes: int = 0  # records that something needs
    condemned: int = 0  # packs that fences of this collection named
    rescued: int = 0
    packs_removed: int = 0
    bytes_freed: int = 0  # without those of the packs that copies went into
    repacked: int = 0  # packs whose live records were copied
    repacked_bytes: int = 0
    repack_stopped: str = ""  # why it was not finished
    spared: int = 0  # packs that look like garbage, but live writers ask for them
    leases: int = 0
    missing: int = 0  # chunks that a version needs and no pack has
    temporaries: int = 0  # files of dead writers under tmp/
    rounds: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return dict(vars(self))


@dataclass
class View:
    """The store at one moment, as a collection judges it."""

    sequence: int
    gc_sequence: int
    heads: set[str]
    forgotten: set[str]
    packs: dict[str, PackRecord]
    condemned: dict[str, int]
    unlisted: set[str]
    leases: set[str]
    claims: set[str]


@dataclass
class _Verdict:
    """What the next entry says."""

    fence: list[str] = field(default_factory=list)
    rescue: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    more: bool = False  # it did not all fit into one entry

    def __bool__(self) -> bool:
        return bool(self.fence or self.rescue or self.remove)


class Collector:
    """One collection over a store of its own. Not for use by several threads. It may be dropped between any two steps."""

    def __init__(
        self,
        store: Store,
        dry_run: bool = False,
        repack: bool = True,
        heed_claims: bool = True,
        progress: Progress = lambda what, done, total: None,
        retire: Collection[str] = (),
        repack_share: float = limits.GC_REPACK_SHARE,
    ) -> None:
        """heed_claims=False takes live writers' unpublished packs, too: they have to be stored again. It is not unsafe.

        retire: packs of which everything that is needed is copied into new ones, whatever their state.
        repack_share: packs of which less than this share is needed are rewritten; 1.0: all that hold anything else.
        """
        self._store, self._dry_run, self._heed_claims, self._progress = store, dry_run, heed_claims, progress
        self._folder = store.cache_path("gc")
        self._may_repack, self._may_fence = repack and not dry_run, True
        self._retire, self._repack_share = frozenset(retire), repack_share
        self._keys: Keys
        self._walked: set[str]  # commits with their history
        self._walked_bare: set[str]
        self._forget_mark()
        self._retiring: set[str] = set()
        self._reserve_released = False
        self.report = GcReport(dry_run)

    def run(self) -> GcReport:
        """All steps. Raises Damaged (nothing is removed while it is unclear what is needed), StoreFull or Conflict."""
        for _ in self.steps():
            pass
        return self.report

    def steps(self) -> Iterator[str]:
        """Do one step at a time, and tell its name when it is done."""
        started = time.monotonic()
        for _ in range(limits.GC_ROUNDS_MAX):
            self.report.rounds += 1
            try:
                done = yield from self._round()
            except _Overtaken:
                self._forget_mark()
                yield "overtaken"
                continue
            finally:
                self.report.seconds = time.monotonic() - started
            if done:
                break
        else:
            raise Conflict("other collections were faster every time: let them finish, then run it again")
        if not self._dry_run:
            self.report.temporaries = self._store.home.remove_dead_temporaries()
            if self._reserve_released:
                self._store.home.restore_reserve()

    def judge(self) -> tuple[View, Keepers]:
        """What is needed now, and which packs keep it; nothing is changed. Raises as `run`."""
        view = self._look()
        self._mark(view)
        return view, self._choose(view)

    def _choose(self, view: View) -> Keepers:
        return choose_keepers(
            self._store, view.packs, view.condemned, self._retiring, self._keys, self._folder, self._progress
        )

    def _round(self) -> Generator[str, None, bool]:
        """Up to one entry of the log; returns whether nothing is left to do."""
        view = self._look()
        yield "looked"
        self._mark(view)
        yield "marked"
        keepers = self._choose(view)
        self._describe(view, keepers)
        if self._may_repack:
            self._may_repack = False
            if self._repack(view, keepers):
                yield "repacked"
                return False
        verdict = self._judge(view, keepers)
        if self._dry_run:
            self._foresee(view, keepers, verdict)
            return True
        if not verdict:
            self._require_latest(view)
            return True
        self._append(view, verdict)
        yield "fenced" if verdict.fence else "removed"
        for done, pack in enumerate(verdict.remove):
            self._progress("delete", done, len(verdict.remove))
            self.report.bytes_freed += self._store.tier.pack_bytes(pack) or 0
            self._store.tier.delete_pack(pack)
            self.report.packs_removed += 1
            yield "deleted"
        return False

    # -- looking and marking -------------------------------------------------------------------------------------

    def _look(self) -> View:
        """Files before the log (a pack that is listed meanwhile is listed in what we see), the log before leases."""
        store = self._store
        files = set(store.tier.packs())
        store.refresh()
        state = store.state
        return View(
            state.sequence,
            state.gc_sequence,
            heads_of(state),
            set(state.forgotten),
            dict(state.packs),
            dict(state.condemned),
            files - state.packs.keys(),
            leased_commits(store.home, store.documents),
            claimed_packs(store.home) if self._heed_claims else set(),
        )

    def _forget_mark(self) -> None:
        """Another collection may have removed what was needed when we marked."""
        self._keys = SortedRuns(limits.GC_KEY_BYTES).finish()
        self._walked, self._walked_bare = set(), set()

    def _mark(self, view: View) -> None:
        """Add to the keys what is reached now and was not before. What is not reached any more stays for this run."""
        runs = SortedRuns(limits.GC_KEY_BYTES, self._folder)
        name = self._store.stored_name
        count = 0

        def visit(digest: Digest) -> None:
            nonlocal count
            count += 1
            if count % 1024 == 0:
                self._progress("mark", count, 0)
            runs.add(name(digest)[: limits.GC_KEY_BYTES])

        try:
            walk = Reach(self._store, visit, self._folder)
            self._walked |= walk.walk(view.heads, view.forgotten, self._walked)
            done = self._walked | self._walked_bare
            self._walked_bare |= walk.walk(view.leases, stop=done, history=False)
            if count:
                runs.add_sorted(self._keys)
                self._keys = runs.finish()
                self._keys = pieces_of(self._store, view.packs, self._keys, self._folder)
        except (ChunkMissing, Damaged, FormatTooNew) as error:
            self._require_latest(view)
            if isinstance(error, FormatTooNew):
                raise
            raise FormatDamaged(
                f"garbage collection cannot tell what is needed, so it removed nothing: {error}"
            ) from None

    def _require_latest(self, view: View) -> None:
        """What looks damaged, or as if nothing were left to do, may be the work of another collection. Raises _Overtaken."""
        self._store.refresh()
        if self._store.state.gc_sequence != view.gc_sequence:
            for pack in self._store.damaged_packs.keys() - self._store.state.packs.keys():
                del self._store.damaged_packs[pack]
            raise _Overtaken

    def _describe(self, view: View, keepers: Keepers) -> None:
        if self.report.rounds == 1:
            self.report.packs = len(view.packs)
            self.report.stored_bytes = sum(record.bytes for record in view.packs.values())
        self.report.live_bytes = sum(keepers.kept.values())
        self.report.missing, self.report.leases = keepers.missing, len(view.leases)

    # -- deciding ------------------------------------------------------------------------------------------------

    def _judge(self, view: View, keepers: Keepers) -> _Verdict:
        rescue = [
            pack for pack in view.condemned if pack in view.packs and (keepers.kept[pack] or pack in keepers.damaged)
        ]
        remove = sorted(view.condemned.keys() - set(rescue))
        garbage = [
            pack
            for pack in view.packs
            if not keepers.kept[pack] and pack not in view.condemned and pack not in keepers.damaged
        ]
        garbage += sorted(view.unlisted - view.condemned.keys())
        fence = [pack for pack in garbage if pack not in view.claims] if self._may_fence else []
        self.report.spared = len(view.claims.intersection(garbage))
        room = limits.GC_PACKS_PER_ENTRY_MAX
        verdict = _Verdict(fence, rescue[:room], remove, len(rescue) + len(remove) + len(fence) > room)
        verdict.remove = remove[: room - len(verdict.rescue)]
        verdict.fence = fence[: room - len(verdict.rescue) - len(verdict.remove)]
        return verdict

    def _foresee(self, view: View, keepers: Keepers, verdict: _Verdict) -> None:
        """What a run would do, as far as nobody else does anything."""
        gone = verdict.fence + verdict.remove
        self.report.condemned, self.report.rescued = len(verdict.fence), len(verdict.rescue)
        self.report.packs_removed = len(gone)
        self.report.bytes_freed = sum(self._store.tier.pack_bytes(pack) or 0 for pack in gone)
        plan = plan_repack(view.packs, keepers, view.claims | view.condemned.keys() | set(gone))
        self.report.repacked = len(plan)
        self.report.repacked_bytes = sum(keepers.kept[pack] for pack in plan)
        self.report.packs_removed += len(plan)
        self.report.bytes_freed += sum(view.packs[pack].bytes - keepers.kept[pack] for pack in plan)

    def _repack(self, view: View, keepers: Keepers) -> bool:
        """Copy what is live out of packs that are mostly garbage, or small. They are garbage then."""
        untouched = view.claims | view.condemned.keys()
        plan = plan_repack(view.packs, keepers, untouched, self._retire, self._repack_share)
        self._retiring = set(plan)
        before = set(self._store.state.packs)
        try:
            for done, pack in enumerate(plan):
                self._progress("repack", done, len(plan))
                self.report.repacked_bytes += repack(self._store, pack, view.packs[pack].content, keepers)
                self.report.repacked += 1
            self._store.flush()
        except StoreFull as error:  # no space to copy to: what is garbage as a whole can still go
            self.report.repack_stopped = str(error)
        packs = self._store.state.packs
        self.report.bytes_freed -= sum(packs[pack].bytes for pack in self._store.claimed & (packs.keys() - before))
        return bool(plan)

    def _append(self, view: View, verdict: _Verdict) -> None:
        def propose(state: LogState) -> Proposal:
            if state.gc_sequence != view.gc_sequence:
                raise _Overtaken
            # A pack that its writer listed since we looked is not ours to judge yet.
            fence = tuple(pack for pack in verdict.fence if pack in view.packs or pack not in state.packs)
            requires = () if FEATURE in state.requires else (FEATURE,)
            return Proposal(
                "gc", fence=fence, rescue=tuple(verdict.rescue), packs_removed=tuple(verdict.remove), requires=requires
            )

        try:
            self._store.append(propose)
        except StoreFull:
            if not self._store.home.has_reserve():
                raise
            self._store.home.release_reserve()
            self._reserve_released = True
            self._store.append(propose)
        self._may_fence = self._may_fence and verdict.more
        self.report.condemned += len(verdict.fence)
        self.report.rescued += len(verdict.rescue)


def collect(
    store: Store,
    dry_run: bool = False,
    repack: bool = True,
    progress: Progress = lambda what, done, total: None,
    retire: Collection[str] = (),
) -> GcReport:
    """Remove what nothing needs, and the packs `retire`, whose live records are copied into new ones before.

    `progress(what, done, total)`, total 0 when it is not known. Any number may run. Interrupted anywhere, nothing that is needed
    is gone, and the next run goes on. Raises Damaged, StoreFull or Conflict.
    """
    return Collector(store, dry_run, repack, progress=progress, retire=retire).run()


class _Moved(Exception):
    """Refs are not where they were."""


def forget(store: Store, commits: set[str], heads: Mapping[str, str] | None = None) -> bool:
    """From now on, what came before `commits` (hex) is needed no more, whoever leads there. False, and nothing is done, when refs do not
    stand at `heads` any more, where these are given: another one may lead there now. Raises StoreFull."""

    def propose(state: LogState) -> Proposal:
        if heads is not None and heads != {ref: record.commit for ref, record in state.refs.items()}:
            raise _Moved
        return Proposal("forget", forgotten=tuple(commits - state.forgotten))

    if commits - store.state.forgotten:
        try:
            store.append(propose)
        except _Moved:
            return False
    return True
