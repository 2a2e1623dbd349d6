"""Publication: what was put, and the refs that are to move, become one entry of the log.

    put ... -> packs sealed -> the entry is proposed against the newest state -> appended -> the index follows
                                      |                                  |
                   refused here (Conflict, OverQuota)       lost the race: proposed again
                                      |
                   doubtful (garbage collection went through, or a quota asks what the commit adds): looked at without
                   the lock, what was taken is stored again, and proposed again

A ref moves only in an entry that is appended after every pack it needs is durable. Functions of a `Store`; any thread, under its lock
while an entry is proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from leptonstore.digest import parse_hex
from leptonstore.errors import ChunkMissing, CommitExpired, Conflict, LeptonError
from leptonstore.store import dataset_quota, fences
from leptonstore.store.log import LogState, Proposal, RefUpdate, require_ref
from leptonstore.store.quota import OverQuota, require_quota

if TYPE_CHECKING:
    from leptonstore.store.store import Store

Decide: TypeAlias = Callable[[LogState], tuple[RefUpdate, ...]]
Erasure: TypeAlias = Callable[[LogState, Proposal], Proposal]
Measures: TypeAlias = Mapping[tuple[str, str], dataset_quota.Measured]


@dataclass(frozen=True)
class Work:
    """What is to be published; see `Store.publish`.

    decide: None where no ref moves. round: of `Writer.finish`; None: the packs that are sealed by now, while work goes on. erasure: what it
    adds to the proposal, when this begins an epoch.
    """

    action: str
    decide: Decide | None
    round: int | None
    author: str = ""
    ends: Set[str] = frozenset()
    erasure: Erasure | None = None
    write_id: str = ""


def publish(store: Store, work: Work) -> None:
    """Raises StoreFull, Conflict or CommitExpired; then no ref has moved."""
    checked: fences.Checked | None = None
    measured: Measures = {}
    while True:
        try:
            with store._lock:
                _append(store, work, checked, measured)
            return
        except dataset_quota.Unmeasured as unmeasured:
            try:
                measured = dataset_quota.measure_new(store, unmeasured.wanted, work.ends)
                continue
            except ChunkMissing:  # garbage collection was faster
                lacking = tuple(commit for _, commit in unmeasured.wanted)
        except fences.Fenced as fenced:
            lacking = fenced.commits
        except fences.Outdated as error:
            raise _expired(store, error) from None
        try:
            checked = fences.revalidate(store, lacking, work.ends)
        except fences.Outdated as error:
            raise _expired(store, error) from None
        if work.round is not None:
            work = replace(work, round=store._writer.finish())


def _expired(store: Store, error: fences.Outdated) -> CommitExpired:
    """Forget what must not be listed any more."""
    store._writer.begin_epoch(store.state.epoch)
    return CommitExpired(str(error))


def _append(store: Store, work: Work, checked: fences.Checked | None, measured: Measures) -> None:
    """Under the lock. Raises fences.Fenced when something has to be held against the newest state first, dataset_quota.Unmeasured
    when it is not known yet what it adds to a dataset that has a quota."""
    sweep(store)
    sealed = store._writer.sealed()
    if work.round is None and not sealed:
        return
    updates: tuple[RefUpdate, ...] = ()

    def propose(state: LogState) -> Proposal:
        nonlocal updates
        updates = () if work.decide is None else work.decide(state)
        if work.erasure is None:
            fences.require_epoch(store, state, updates)
            for update in updates:
                require_ref(state, update)
        elif state.epoch + 1 != store._writer.epoch:
            raise Conflict("another erasure went through while this ran: nothing was erased; run it again")
        doubtful = fences.doubtful(store, state, updates, work.ends)
        proven = not doubtful or (checked is not None and checked.holds(store, state, doubtful))
        if not proven or any(state.lost(pack) for pack in sealed):
            raise fences.Fenced(doubtful)
        cut = _unprotected(store, state, work.ends) if work.ends else ()
        charged = dataset_quota.charge(store, state, updates, measured) if work.erasure is None else {}
        proposal = Proposal(
            work.action,
            sealed,
            updates,
            settings=charged,
            placed=store._placed(sealed),
            forgotten=cut,
            author=work.author,
            write_id=work.write_id,
        )
        if work.erasure is not None:
            proposal = work.erasure(state, proposal)
        require_quota(state, proposal)
        return proposal

    try:
        store._log.append(store.state, propose)
    except OverQuota:
        store._writer.discard(set(sealed))
        raise
    store._sync_index()
    store._writer.published(set(sealed), work.round, bool(updates))


def _unprotected(store: Store, state: LogState, commits: Set[str]) -> tuple[str, ...]:
    """Those of `commits` that no ref protects. Of one that is in no listed pack that is known without reading history."""
    store._sync_index()
    there = {commit for commit in commits if store.locate(parse_hex(commit)) is not None}
    return tuple(commits - fences.protected_by_refs(store, state, there) - state.forgotten)


def sweep(store: Store) -> None:
    """Under the lock: remove the files of packs that a failure made us forget, so that a full disk is not fuller for them."""
    dropped = store._writer.take_dropped()
    if not dropped:
        return
    with suppress(LeptonError, OSError):  # what stays is garbage like that of a writer that died
        store._log.replay(store.state)
        for pack in dropped - store.state.packs.keys():
            store.tier.delete_pack(pack)


def replace_packs(store: Store, action: str, packs: set[str], base: int) -> None:
    """See `Store.replace_packs`."""
    round = store._writer.finish()
    with store._lock:
        sealed = store._writer.sealed()

        def propose(state: LogState) -> Proposal:
            if state.gc_sequence != base:
                raise Conflict("garbage collection removed packs while this ran: run the command again")
            gone = tuple(pack for pack in packs if pack in state.packs)
            proposal = Proposal(action, sealed, packs_removed=gone, placed=store._placed(sealed))
            require_quota(state, proposal)
            return proposal

        try:
            store._log.append(store.state, propose)
        except (OverQuota, Conflict):
            store._writer.discard(set(sealed))
            raise
        store._sync_index()
        store._writer.published(set(sealed), round)
        for pack in packs:
            store.damaged_packs.pop(pack, None)
