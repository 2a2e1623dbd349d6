"""Push and pull: versions and the refs that lead to them, from one store to another.

    push   refs of this store -> a remote one     a branch moves forward only, unless it is forced
    pull   refs of a remote store -> this one     where both went on, the remote's head is kept as NAME@<remote>-<branch>

Rules, for all refs of one call together (all move, in one log entry, or none):
- Forward is where the old head is among what came before the new one. Checkpoints and models have no parents: there it is where the
  source's own ref has been at the old head before.
- A ref moves by compare-and-set from the head that was seen when the call began: who came between is a Conflict, never overwritten,
  also with force.
- A ref that is ahead in the destination is not moved: a push says so, a pull has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from leptonstore import limits
from leptonstore.dataset.refs import ref_name, split_spec
from leptonstore.digest import parse_hex
from leptonstore.errors import (
    BadInput,
    ChunkMissing,
    CommitExpired,
    Conflict,
    FormatDamaged,
    NotPermitted,
    RefMissing,
    listed,
)
from leptonstore.store import RefUpdate, Store
from leptonstore.store.lines import Line
from leptonstore.store.log import LogState, RefRecord
from leptonstore.store.transfer import Transfer, TransferReport

Progress = Callable[[TransferReport], None]
_TRACKS = "tracks"  # in the metrics of a ref that keeps a remote's head: whose
NEW, FORWARD, FORCED, EQUAL, AHEAD, DIVERGED = "new", "forward", "forced", "equal", "ahead", "diverged"


@dataclass(frozen=True)
class RefMove:
    """What happens to one ref of the destination."""

    ref: str  # <kind>/<name>/<branch>
    old: str | None  # the destination's head
    new: str  # the source's head
    action: str  # "new", "forward", "forced"; "equal", "ahead", "diverged": it stays
    tag: bool = False

    @property
    def moves(self) -> bool:
        """Whether the ref leads to `new` afterwards, and did not before."""
        return self.action in (NEW, FORWARD, FORCED)

    @property
    def label(self) -> str:
        """For people: "mnist@main", "model digits@main"."""
        kind, name, branch = self.ref.split("/", 2)
        return f"{name}@{branch}" if kind == "dataset" else f"{kind} {name}@{branch}"


@dataclass
class Exchange:
    """What a push or pull did."""

    moves: list[RefMove]
    report: TransferReport
    kept: dict[str, str] = field(default_factory=dict)  # diverged ref -> the ref that keeps the remote's head

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        refs = [{**vars(move), "kept_as": self.kept.get(move.ref)} for move in self.moves]
        return {"refs": refs, **self.report.to_json()}


def refs_of(store: Store, specs: Sequence[str], kind: str = "dataset", whole: bool = False) -> list[str]:
    """The refs that NAME[@BRANCH] mean; with `whole` all branches and tags of each NAME, and of all names of all kinds when there is none.

    Raises RefMissing or BadInput.
    """
    found: dict[str, None] = {}
    if not specs and whole:
        found.update(dict.fromkeys(ref for ref in _all_refs(store) if not is_tracking(store.state.refs[ref])))
    for spec in specs:
        name, branch = split_spec(spec)
        prefix = ref_name(kind, name, branch).rpartition("/")[0] + "/"
        there = [ref for ref in _all_refs(store) if ref.startswith(prefix)]
        own = [ref for ref in there if not is_tracking(store.state.refs[ref])]
        wanted = own if whole else [ref for ref in there if ref == prefix + branch]
        if not wanted:
            has = listed(ref[len(prefix) :] for ref in there)
            names = sorted({ref.split("/")[1] for ref in _all_refs(store) if ref.startswith(f"{kind}/")})
            known = f"{kind} {name!r} has no branch or tag {branch!r}; it has: {has}" if there else ""
            raise RefMissing(known or f"no {kind} {name!r} in {store.url}; there is: {listed(names)}")
        found.update(dict.fromkeys(wanted))
    return list(found)


def is_tracking(record: RefRecord) -> bool:
    """Whether a pull made this ref, to keep the head of a branch of a remote: it is not pushed, pulled or cloned with the others."""
    return _TRACKS in record.metrics


def _all_refs(store: Store) -> list[str]:
    """Names as they are checked here: another store's log is not trusted to hold good ones."""
    for ref in store.state.refs:
        kind, _, rest = ref.partition("/")
        name, _, branch = rest.partition("/")
        try:
            ref_name(kind, name, branch)
        except BadInput as error:
            raise FormatDamaged(f"{store.url} has a ref with a bad name: {error}") from None
    return sorted(store.state.refs)


def push(
    store: Store,
    remote: Store,
    refs: Sequence[str],
    force: bool = False,
    expect: str = "",
    depth: int | None = None,
    dry_run: bool = False,
    progress: Progress = lambda report: None,
) -> Exchange:
    """Bring `refs` (as `refs_of` tells) of `store` to `remote`.

    force: also where the remote's head would be left behind; expect: only if that head begins with these digits. depth: of a name that
    the remote lacks, the newest so many generations; it takes what came before for forgotten. Raises Conflict (nothing has moved),
    StoreFull, NotPermitted, BadInput.
    """
    with _between(store, remote, refs, dry_run, progress) as work:
        moves = work.plan(depth)
        if expect and not force:
            raise BadInput("an expected head is for a push that is forced")
        done = [_forced(move, expect) if force else move for move in moves]
        for move in done:
            if move.action in (AHEAD, DIVERGED):
                raise Conflict(_refused(move, remote))
        work.copy([move.new for move in done if move.moves])
        work.publish("push", done, {})
        return Exchange(done, work.finish(done))


def pull(
    store: Store,
    remote: Store,
    refs: Sequence[str],
    origin: str = "origin",
    depth: int | None = None,
    dry_run: bool = False,
    progress: Progress = lambda report: None,
) -> Exchange:
    """Bring `refs` of `remote` to `store`. Where both went on, the branch stays and the remote's head is kept under NAME@<origin>-<branch>,
    which goes away with the pull that finds it merged. Raises as `push`; not Conflict for a branch that diverged: see `Exchange.kept`.
    """
    with _between(remote, store, refs, dry_run, progress) as work:
        moves, kept = work.plan(depth), dict[str, str]()
        for move in moves:
            kind, name, branch = move.ref.split("/", 2)
            tracking = ref_name(kind, name, f"{origin}-{branch}")
            record = store.state.refs.get(tracking)
            if move.action == DIVERGED:
                if record is not None and not is_tracking(record) and record.commit != move.new:
                    raise Conflict(
                        f"{move.label} has diverged, and {name}@{origin}-{branch}, which would keep the remote's head, is a branch of your "
                        "own: give that another name, or the remote"
                    )
                kept[move.ref] = tracking
            elif record is not None and is_tracking(record) and work.is_merged(record.commit, move):
                work.gone[tracking] = record.commit
        # A branch of the remote's that is called like one that keeps a head here stays there.
        moves = [move for move in moves if move.ref not in kept.values()]
        work.copy([move.new for move in moves if move.moves or move.action == DIVERGED])
        work.publish("pull", moves, kept)
        return Exchange(moves, work.finish(moves), kept)


def clone(
    remote: Store,
    store: Store,
    specs: Sequence[str] = (),
    kind: str = "dataset",
    depth: int | None = None,
    progress: Progress = lambda report: None,
) -> Exchange:
    """Bring all branches and tags of the names `specs` (none: of everything) to `store`, name by name: what was interrupted goes on.

    Raises as `pull`.
    """
    names: dict[str, list[str]] = {}
    for ref in refs_of(remote, specs, kind, whole=True):
        names.setdefault(ref.rpartition("/")[0], []).append(ref)
    done = Exchange([], TransferReport())
    for refs in names.values():
        one = pull(store, remote, refs, depth=depth, progress=progress)
        done.moves += one.moves
        done.kept.update(one.kept)
        done.report.add(one.report)
    return done


def _forced(move: RefMove, expect: str) -> RefMove:
    if move.old is None or move.tag or move.action in (EQUAL, FORWARD):
        return move
    if not move.old.startswith(expect):
        raise Conflict(
            f"{move.label} of the remote is at {move.old[:12]}, not at {expect}: nothing was sent; look at it (`lepton pull`) first"
        )
    return replace(move, action=FORCED)


def _refused(move: RefMove, remote: Store) -> str:
    name = move.ref.split("/", 2)[1]
    if move.tag:
        return (
            f"tag {move.label} is {move.new[:12]} here and {(move.old or '')[:12]} in {remote.url}: nothing was sent; a tag never moves, "
            "so make another one, or remove it there first"
        )
    if move.action == AHEAD:
        return (
            f"{move.label} of {remote.url} is at {(move.old or '')[:12]}, which is newer than {move.new[:12]} here: nothing was sent; "
            f"get it with `lepton pull {name}`"
        )
    if not move.ref.startswith("dataset/"):
        return (
            f"{move.label} of {remote.url} is at {(move.old or '')[:12]}, which was never here (here it is {move.new[:12]}): nothing was "
            "sent; push under another name, or replace it with --force"
        )
    return (
        f"{move.label} has diverged: {move.new[:12]} here, {(move.old or '')[:12]} in {remote.url}: nothing was sent; get it with "
        f"`lepton pull {name}`, merge, and push again (or leave the remote's versions behind with --force)"
    )


@contextmanager
def _between(
    source: Store, destination: Store, refs: Sequence[str], dry_run: bool, progress: Progress
) -> Iterator[_Work]:
    """Work on `refs`, whose heads are held in the source meanwhile. One that is only read cannot hold anything, and is trusted."""
    if source.same_place(destination):
        raise BadInput(f"{source.url} is the same store: give another one")
    if not refs:
        raise BadInput(f"nothing to do: {source.url} has no dataset, model or checkpoint, or none was named")
    source.refresh()
    destination.refresh()
    work = _Work(source, destination, refs, Transfer(source, destination, progress, dry_run), dry_run)
    with ExitStack() as held:
        for head in dict.fromkeys(work.heads.values()) if not dry_run else ():
            with suppress(NotPermitted, OSError):
                held.enter_context(source.lease(head))
        try:
            yield work
        except ChunkMissing as error:
            if source.has(parse_hex(error.digest)):
                raise
            source.refresh()
            if all(_head(source.state, ref) == head for ref, head in work.heads.items()):
                raise
            raise CommitExpired(
                f"a version was removed from {source.url} while it was copied: nothing was published; run the command again"
            ) from None


class _Work:
    """One exchange: what is to move, its copy, and its publication."""

    def __init__(
        self, source: Store, destination: Store, refs: Sequence[str], transfer: Transfer, dry_run: bool
    ) -> None:
        self.source, self.destination, self._transfer, self._dry_run = source, destination, transfer, dry_run
        self.heads: dict[str, str] = {}
        for ref in refs:
            head = _head(source.state, ref)
            if head is None:
                raise RefMissing(f"{ref} was removed from {source.url} meanwhile")
            self.heads[ref] = head
        self.gone: dict[str, str] = {}  # refs of the destination that are needed no more -> their heads
        self._depth: int | None = None
        self._line = Line((), frozenset(), frozenset())
        self._line_heads: Sequence[str] = ()

    def plan(self, depth: int | None) -> list[RefMove]:
        """What is to become of each ref."""
        if depth is not None and depth < 1:
            raise BadInput(f"depth is {depth}: it must be 1 or more")
        self._depth = depth
        self._join(list(self.heads.values()))
        state = self.destination.state
        moves = [self._move(ref, head, _head(state, ref)) for ref, head in self.heads.items()]
        for move in moves:
            self._require_kind(move)
        return moves

    def _join(self, heads: Sequence[str]) -> None:
        """Find the commits that are to travel: from `heads` back to what the destination protects now."""
        refs = self.destination.state.refs
        names = {ref.rpartition("/")[0] for ref in self.heads}
        # Where the destination has versions of that name, history is joined to them.
        there = [record.commit for ref, record in refs.items() if ref.rpartition("/")[0] in names]
        depth = self._depth if not there else None
        theirs = {record.commit for record in refs.values()}
        self._line, self._line_heads = self._transfer.lines.line_of(heads, theirs, depth), heads
        if there and not self._is_closed():
            # It leads past the heads of the destination: what came before them is protected, too.
            theirs |= self._transfer.lines.ancestors(there)
            self._line = self._transfer.lines.line_of(heads, theirs, depth)

    def _is_closed(self) -> bool:
        """Whether it makes no difference what came before the destination's heads: no new line leads past them."""
        firsts = [commit for commit in self._line.commits if not self._transfer.lines.commit(commit).parents]
        return not self._line.ends and len(firsts) in (0, len(self._line.commits))

    def _move(self, ref: str, new: str, old: str | None) -> RefMove:
        tag = self.source.state.refs[ref].tag
        return RefMove(ref, old, new, self._action(ref, new, old, tag), tag)

    def _action(self, ref: str, new: str, old: str | None, tag: bool) -> str:
        if old is None or old == new:
            return NEW if old is None else EQUAL
        if tag or self.destination.state.refs[ref].tag:
            return DIVERGED  # a tag never moves
        if self._transfer.lines.is_before(old, new):
            return FORWARD
        if ref.startswith("dataset/"):
            return AHEAD if self._transfer.lines.is_before(new, old) else DIVERGED
        if old in _past(self.source, ref):  # without parents: which came first is told by the logs
            return FORWARD
        return AHEAD if new in _past(self.destination, ref) else DIVERGED

    def is_merged(self, commit: str, move: RefMove) -> bool:
        """Whether `commit` is among what the ref leads to afterwards."""
        head = move.old if move.action == AHEAD and move.old is not None else move.new
        return commit == head or self._transfer.lines.is_before(commit, head)

    def _require_kind(self, move: RefMove) -> None:
        kind = move.ref.partition("/")[0]
        found = self._transfer.lines.commit(move.new).kind
        if found != kind:
            raise BadInput(f"{move.label} of {self.source.url} leads to a {found}, not to a {kind}: nothing was sent")

    def copy(self, heads: Sequence[str]) -> None:
        """Bring what `heads` reach to the destination."""
        if set(heads) != set(self._line_heads):
            self._join(heads)
        self._transfer.copy(self._line)

    def publish(self, action: str, moves: Sequence[RefMove], kept: dict[str, str]) -> None:
        """Move the refs, in one entry. What garbage collection took meanwhile is sent again. Raises Conflict or StoreFull."""
        moving = [(move.ref, move.old, move) for move in moves if move.moves]
        moving += [
            (kept[move.ref], _head(self.destination.state, kept[move.ref]), move) for move in moves if move.ref in kept
        ]
        if self._dry_run or not (moving or self.gone):
            return

        def decide(state: LogState) -> tuple[RefUpdate, ...]:
            updates = []
            for ref, old, move in moving:
                found = _head(state, ref)
                if found == move.new:
                    continue  # somebody else brought the very same version
                if found != old:
                    raise Conflict(
                        f"{move.label} of {self.destination.url} was moved to {(found or 'nothing')[:12]} while this ran: nothing was "
                        "published; run the command again"
                    )
                tracks = {} if ref == move.ref else {_TRACKS: f"{move.ref} of {self.source.url}"}
                of_source = {
                    key: value for key, value in self.source.state.refs[move.ref].metrics.items() if key != _TRACKS
                }
                updates.append(RefUpdate(ref, found, move.new, {**of_source, **tracks}, move.tag and not tracks))
            updates += [RefUpdate(ref, old, None) for ref, old in self.gone.items() if _head(state, ref) == old]
            return tuple(updates)

        for attempt in range(limits.TRANSFER_TRIES):
            try:
                self.destination.publish(action, decide, ends=self._line.ends)
                return
            except CommitExpired:
                if attempt + 1 == limits.TRANSFER_TRIES:
                    raise
                self._join(self._line_heads)
                self._transfer.copy(self._line, trust=False)
            except BaseException as error:
                self._transfer.keep(error)
                raise

    def finish(self, moves: Sequence[RefMove]) -> TransferReport:
        """What travelled, beside what the versions hold that the refs lead to now."""
        heads = dict.fromkeys(move.new for move in moves)
        return self._transfer.finish(sum(self._transfer.lines.commit(head).plain_bytes for head in heads))


def _head(state: LogState, ref: str) -> str | None:
    record = state.refs.get(ref)
    return None if record is None else record.commit


def _past(store: Store, ref: str) -> set[str]:
    """The commits that `ref` has led to."""
    return {move["new"] for entry in store.history() for move in entry["refs"] if move["name"] == ref}
