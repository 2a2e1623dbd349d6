"""A writer and the fences of garbage collection: what has to be looked at again before a ref may move.

From its FENCE on, a condemned pack counts as absent (store/gc.py). A writer that began before may have counted on it. So before it
publishes, against the newest state of the log:
- a pack of its own that was condemned before it was listed is not listed; its records are copied into a new one;
- when garbage collection did anything since the Store was opened, when a pack that it counted on is not present, or when a ref is to
  lead to a commit that it did not just make and that no ref protects, everything that the commit reaches and its protected parents do
  not is looked up, and what counts as absent is stored again from wherever it can still be read. When it cannot be read any more, the
  work has to be done again.
- what was put before an erasure is not published after it (`require_epoch`), nor is what came from a version that was erased.
The log entry is appended only if no further entry of garbage collection came in between, and if what was left out because a ref
protects it is still protected where the entry lands.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from leptonstore.digest import Digest, parse_hex
from leptonstore.errors import ChunkCorrupt, ChunkMissing, CommitExpired, RefMissing
from leptonstore.format import pack as lpk
from leptonstore.format.commit import Commit, parse_commit
from leptonstore.store.leases import Lease
from leptonstore.store.log import LogState, RefUpdate
from leptonstore.store.reach import Reach, protected

if TYPE_CHECKING:
    from leptonstore.store.store import Store


class Fenced(Exception):
    """Before it can be published: look at these commits again (none: only at packs that are not listed yet)."""

    def __init__(self, commits: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.commits = commits


class Outdated(Exception):
    """What is unpublished was put before an erasure, or comes from what was erased: it must be forgotten, and put again."""


class Checked(NamedTuple):
    """What `revalidate` found of `commits`. It holds for states with this gc_sequence that protect `leaning_on`."""

    commits: tuple[str, ...]
    gc_sequence: int
    leaning_on: set[str]

    def holds(self, store: Store, state: LogState, commits: tuple[str, ...]) -> bool:
        """Whether it proves, in `state`, that everything that `commits` reach is there."""
        if state.gc_sequence != self.gc_sequence or not set(commits) <= set(self.commits):
            return False
        return protected(store, heads_of(state), state.forgotten, self.leaning_on) == self.leaning_on


def heads_of(state: LogState) -> set[str]:
    """The commits that refs lead to."""
    return {record.commit for record in state.refs.values()}


def protected_by_refs(store: Store, state: LogState, commits: Set[str]) -> set[str]:
    """Those of `commits` that are the head of a ref, or came before one within the boundaries."""
    return protected(store, heads_of(state), state.forgotten, commits)


def require_epoch(store: Store, state: LogState, updates: tuple[RefUpdate, ...]) -> None:
    """Raises Outdated when work began in an earlier epoch, or a new version says that it was made from an erased one.

    What was put before may hold the erased rows: no program can tell by looking at digests whether its author would put them now.
    """
    if state.epoch != store._writer.epoch and not follow_epoch(store):
        raise Outdated("rows were erased from this store while this ran: nothing was published; run it again")
    for update in updates if state.replaced else ():
        if update.new is None or parse_hex(update.new) not in store._writer:
            continue
        commit = _commit(store, update.new)
        if commit.kind == "dataset":  # a model may say that it was trained on what was erased since
            _require_standing(state, set(_texts(commit.lineage)))


def follow_epoch(store: Store) -> bool:
    """Be in the epoch of the state, when nothing unpublished is of an earlier one: whether that is so."""
    if store._writer.epoch < store.state.epoch and not store._writer.busy:
        store._writer.begin_epoch(store.state.epoch)
    return store._writer.epoch >= store.state.epoch


def _texts(value: Any) -> Iterator[str]:
    """Every text anywhere in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _require_standing(state: LogState, commits: set[str]) -> None:
    for commit in sorted(commits & state.replaced.keys()):
        raise Outdated(
            f"version {commit[:12]} was erased, and {state.stands_for(commit)[:12]} stands for it: nothing was published; "
            "run it again from that one (a copy from another store: erase the rows there first)"
        )


def doubtful(
    store: Store, state: LogState, updates: tuple[RefUpdate, ...], forgotten: Set[str] = frozenset()
) -> tuple[str, ...]:
    """The new commits of which `state` does not prove that everything they reach is there.

    forgotten: commits of which the same log entry says that history ends there.
    """
    heads = heads_of(state)
    new = tuple(update.new for update in updates if update.new is not None and update.new not in heads)
    if state.gc_sequence != store._base or not all(map(state.present, store._writer.relied)):
        return new
    if not state.gc_sequence:
        return ()
    return tuple(commit for commit in new if not _is_fresh(store, commit, heads, state.forgotten | forgotten))


def _is_fresh(store: Store, commit: str, heads: set[str], forgotten: Set[str]) -> bool:
    """Whether this process just made the commit, on top of what refs protect: then it put all that is new in it.

    So it is with a line of commits of which it made each, down to what refs protect or to where history ends.
    """
    queue, made, others = [commit], set(), set()
    while queue:
        current = queue.pop()
        if parse_hex(current) not in store._writer:
            others.add(current)
        elif current not in made:
            made.add(current)
            if current not in forgotten:
                queue += [parent.hex() for parent in _commit(store, current).parents]
    return commit in made and protected(store, heads, store.state.forgotten, others) == others


def _commit(store: Store, commit: str) -> Commit:
    return parse_commit(store.get(parse_hex(commit)))


def revalidate(store: Store, commits: tuple[str, ...], ends: Set[str] = frozenset()) -> Checked:
    """Store again whatever `commits` reach and the newest state counts as absent. ends: commits whose parents are not followed.

    Raises CommitExpired when something cannot be read any more, Outdated when an erased version is among what they reach, or StoreFull.
    """
    with store._lock:
        store.refresh()
        found = store.state.gc_sequence
        heads, forgotten = heads_of(store.state), set(store.state.forgotten)
        lost = {pack for pack in store._writer.sealed() if store.state.lost(pack)}
    store._writer.put_again(lost)
    try:
        parents = {parent.hex() for commit in commits for parent in _commit(store, commit).parents}
        safe = protected(store, heads, forgotten, parents.union(commits))
        walk = Reach(store, lambda digest: _keep(store, digest), store.cache_path("reach"))
        new = [commit for commit in commits if commit not in safe]
        met = walk.walk(new, forgotten | ends, heads | safe, known=safe & parents)
        _require_standing(store.state, met)
    except (ChunkMissing, ChunkCorrupt) as error:
        raise CommitExpired(
            f"garbage collection removed a chunk that this work relied on ({error.digest[:16]}…): nothing was published; "
            "run it again"
        ) from None
    return Checked(commits, found, walk.stopped | (safe & parents.union(commits)))


def _keep(store: Store, digest: Digest) -> None:
    """Store a chunk again unless a pack that counts has it."""
    if store.known(digest, referred=True):
        return
    kind, data = store.record(digest)
    for piece, _ in lpk.parse_chunk_list(data).pieces if kind == lpk.KIND_CHUNK_LIST else ():
        _keep(store, piece)
    place = store.locate(digest)
    listed = None if place is None else store.state.packs.get(place.pack)
    content = lpk.CONTENT_DATA if listed is None else listed.content
    width = 0 if place is None else place.row.plane_width
    store._writer.add(digest, kind, data, content, here=True, plane_width=width)


def take_lease(store: Store, commit: str) -> Lease:
    """See Store.lease. The lease is made first: garbage collection reads leases after the log."""
    lease = Lease(store.home, store.documents, commit)
    try:
        store.refresh()
        if not protected(store, heads_of(store.state), store.state.forgotten, {commit}):
            raise RefMissing(f"no ref of {store.url} leads to version {commit[:12]} any more: it cannot be held")
    except BaseException:
        lease.release()
        raise
    return lease
