"""What a principal that is limited to datasets may see: every chunk that its datasets' refs reach, and no other.

For each dataset that somebody with such a credential asks for there is a set of digests (digest_set.py), computed by walking what its
refs reach (store/reach.py): commits with their history up to a `forget`, tree nodes, pages, values, and the pieces of long values. It
follows the log: a ref that moves forward adds what its new commits reach, which costs what has changed; a ref that was removed or moved
elsewhere (also by an erasure) makes the set anew. Nothing of another dataset is in it, unless this one holds the same bytes.

Growth: 16 bytes for each chunk that a dataset reaches (digest_set.py: on disk from 2 million on), 300 bytes of memory for each of its
commits; the first request reads its tree nodes and the pages that hold references, once: about 12 us for each chunk. Who waits longer than
WALK_WAIT_S is told to come again (TooBusy), while the walk goes on. At most DATASETS_MAX sets are kept; the one that was asked for
longest ago goes.

Credentials for the whole store need none of this.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import TYPE_CHECKING

from leptonstore.daemon.digest_set import DigestSet
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Principal
from leptonstore.digest import Digest, parse_hex
from leptonstore.errors import ChunkMissing, NotPermitted, TooBusy
from leptonstore.format import pack as lpk
from leptonstore.format.commit import parse_commit
from leptonstore.store import Store
from leptonstore.store.log import LogState
from leptonstore.store.reach import Reach

if TYPE_CHECKING:
    from leptonstore.daemon.sessions import Session

DATASETS_MAX = 256
WALK_WAIT_S = 20.0  # a client waits longer than this for an answer only when it is told to
_RETRY_S = 5.0
_BATCH = 4_096  # digests that are looked up at a time

Visible = Callable[[Sequence[Digest]], Sequence[bool]]


class Reachable:
    """The sets of one daemon. Any thread: each set is made by one, in the background; the others wait."""

    def __init__(self, store: Store, wait_s: float = WALK_WAIT_S) -> None:
        self._store, self._wait_s = store, wait_s
        self._guard = threading.Lock()
        self._sets: OrderedDict[str, _DatasetSet] = OrderedDict()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="lepton-reach")

    def visible(self, principal: Principal) -> Visible | None:
        """What tells of digests whether `principal` may see them; None: it may see all.

        As of the store's state when this is called. Raises TooBusy while that is being found out, and what reading raises.
        """
        names = principal.datasets(Scope.READ)
        if names is None:
            return None
        sets = self._current(names)

        def seen(digests: Sequence[Digest]) -> Sequence[bool]:
            found = [False] * len(digests)
            for one in sets:
                found = [old or new for old, new in zip(found, one.contains(digests), strict=True)]
            return found

        return seen

    def may_reach(self, principal: Principal, session: Session, commits: Iterable[str], ends: Set[str]) -> None:
        """Raise NotPermitted unless all that `commits` (hex) reach was put in `session`, or is visible to the principal.

        ends: commits whose parents the publication cuts off. Nothing that it may not see is read on the way.
        """
        names = principal.datasets(Scope.READ)
        if names is None:
            return
        self._store.refresh()
        visible = self.visible(principal)
        assert visible is not None
        known: set[str] = set()
        heads: set[str] = set()
        with self._guard:
            for name in names & self._sets.keys():
                known |= self._sets[name].commits
                heads |= self._sets[name].heads
        source = _Permitted(session, visible)
        reached: list[Digest] = []

        def visit(digest: Digest) -> None:
            reached.append(digest)
            if len(reached) >= _BATCH:
                source.require(reached)
                reached.clear()

        folder = session.store.cache_path("sessions")
        try:
            walk = Reach(source, visit, folder)
            walk.walk(commits, self._store.state.forgotten | ends, known, known=heads)
        except ChunkMissing:
            raise _refused() from None  # what it names is nowhere: as if it were another's
        source.require(reached)

    def _current(self, names: Set[str]) -> list[DigestSet]:
        """The sets of `names` as of the store's state."""
        state = self._store.state
        with self._guard:
            for name in names:
                if name not in self._sets:
                    self._sets[name] = _DatasetSet(self._store, name)
                self._sets.move_to_end(name)
            while len(self._sets) > max(DATASETS_MAX, len(names)):
                self._sets.popitem(last=False)
            wanted = [self._sets[name] for name in sorted(names)]
            walks = [one.follow(state, self._pool) for one in wanted]
        try:
            return [walk if isinstance(walk, DigestSet) else walk.result(self._wait_s) for walk in walks]
        except NotYet:
            raise TooBusy(
                "what this credential may see is being looked up, which takes a while for a large dataset the first time; ask again",
                _RETRY_S,
            ) from None

    def close(self) -> None:
        """Let a walk under way end; none begins."""
        self._pool.shutdown(cancel_futures=True)


class _DatasetSet:
    """One dataset's set, and the log up to which it was brought."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._folder = store.cache_path("reachable")
        self._digests = DigestSet(self._folder)
        self._parents: dict[str, tuple[str, ...]] = {}  # of each commit that is in the set
        self._forgotten: set[str] = set()  # of those commits, which had no parents to follow
        self.heads: frozenset[str] = frozenset()
        self._sequence = -1
        self._walk: tuple[int, Future[DigestSet]] | None = None
        self._alone = threading.Lock()

    @property
    def commits(self) -> Set[str]:
        """What the set has been brought to."""
        return self._parents.keys()

    def follow(self, state: LogState, pool: ThreadPoolExecutor) -> DigestSet | Future[DigestSet]:
        """The set as of `state`, or what will be it. Under the guard of whoever has this."""
        if self._sequence >= state.sequence:
            return self._digests
        if self._walk is not None and self._walk[0] >= state.sequence and not _failed(self._walk[1]):
            return self._walk[1]
        heads = self._heads_in(state)
        if (
            heads == self.heads
            and self._sequence >= 0
            and not (state.forgotten & self._parents.keys()) - self._forgotten
        ):
            self._sequence = state.sequence  # the entries since then concern others
            return self._digests
        self._walk = (state.sequence, pool.submit(self._bring, state.sequence, heads, set(state.forgotten)))
        return self._walk[1]

    def _heads_in(self, state: LogState) -> frozenset[str]:
        return frozenset(record.commit for ref, record in state.refs.items() if ref.split("/")[1:2] == [self._name])

    def _bring(self, sequence: int, heads: frozenset[str], forgotten: set[str]) -> DigestSet:
        with self._alone:
            if self._sequence >= sequence:
                return self._digests
            parents = self._ancestry(heads, forgotten)
            gone = self._parents.keys() - parents.keys()
            digests, known = (DigestSet(self._folder), set()) if gone else (self._digests, set(self._parents))
            _walk_into(digests, self._store, parents.keys() - known, known, () if gone else self.heads)
            self._digests, self._parents, self.heads = digests, parents, heads
            self._forgotten = forgotten & parents.keys()
            self._sequence = sequence
            return digests

    def _ancestry(self, heads: frozenset[str], forgotten: set[str]) -> dict[str, tuple[str, ...]]:
        """The commits that `heads` reach, each with its parents."""
        found: dict[str, tuple[str, ...]] = {}
        queue = list(heads)
        while queue:
            current = queue.pop()
            if current in found:
                continue
            if current in forgotten:
                found[current] = ()
            elif current in self._parents and current not in self._forgotten:
                found[current] = self._parents[current]
            else:
                commit = parse_commit(self._store.get(parse_hex(current)))
                found[current] = tuple(parent.hex() for parent in commit.parents)
            queue += found[current]
        return found


def _failed(walk: Future[DigestSet]) -> bool:
    """Whether it ended without a set (a full disk, a store that was away): the next request tries again."""
    return walk.done() and (walk.cancelled() or walk.exception() is not None)


def _walk_into(digests: DigestSet, store: Store, commits: Set[str], known: Set[str], heads: Iterable[str]) -> None:
    """Add everything that `commits` reach, with the pieces of long values. What the trees of `heads` reach, all of which are `known`, is
    there already."""
    batch: list[Digest] = []

    def visit(digest: Digest) -> None:
        batch.append(digest)
        if len(batch) >= _BATCH:
            keep()

    def keep() -> None:
        digests.add(batch)
        digests.add(_pieces(store, batch))
        batch.clear()

    Reach(store, visit, store.cache_path("reachable")).walk(commits, stop=known, history=False, known=heads)
    keep()


def _pieces(store: Store, digests: list[Digest]) -> Iterator[Digest]:
    for digest, place in zip(digests, store.locate_many(digests), strict=True):
        if place is not None and place.row.kind == lpk.KIND_CHUNK_LIST:
            yield from (piece for piece, _ in store.pieces(digest) or ())


class _Permitted:
    """A session's store, of which only what was put or may be seen is read."""

    def __init__(self, session: Session, visible: Visible) -> None:
        self._session, self._visible = session, visible

    def require(self, digests: Sequence[Digest]) -> None:
        """Raise NotPermitted unless all of `digests` may be reached."""
        own = self._session.own
        others = [digest for digest, mine in zip(digests, own.contains(digests), strict=True) if not mine]
        if not all(self._visible(others)):
            raise _refused()

    def get(self, digest: Digest) -> bytes:
        """As Store.get; NotPermitted."""
        self.require([digest])
        return self._session.store.get(digest)

    def get_many(self, digests: Sequence[Digest]) -> Iterator[bytes]:
        """As Store.get_many; NotPermitted."""
        self.require(digests)
        return self._session.store.get_many(digests)


def _refused() -> NotPermitted:
    return NotPermitted(
        "this version reaches something that was neither put in this session nor may be read with this credential: put all of it, or "
        "use a credential that may read the dataset that it comes from"
    )
