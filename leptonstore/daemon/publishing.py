"""Publishing what a session put: refs move by compare-and-set, once, and only to what the principal may publish.

The client has decided; what it wants arrives as updates {name, old, new}. The log entry is appended when every ref still points to `old`,
else the client gets a Conflict, refreshes and decides again. The entry carries the client's `id`: when an answer gets lost, the same
request (also to another daemon of the store, or to one that was started anew) finds the entry, and is answered as the first one was.

A principal that may write the whole store publishes what it likes: as a process that has the store open does. One that is limited to
datasets publishes only commits of which everything that they reach was put in this session, or is visible to it (reachable.py): else
it could name the digest of something that it may not read, publish a version with it, and read that.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

from leptonstore.daemon import bounds
from leptonstore.daemon.arguments import Arguments, hex_digest, name_of_ref
from leptonstore.daemon.operations import OPERATIONS, Scope
from leptonstore.daemon.sessions import Session
from leptonstore.dataset.refs import check_name, check_new, ref_name
from leptonstore.errors import BadInput, NotPermitted
from leptonstore.store import RefUpdate, Store
from leptonstore.store.log import LogState

if TYPE_CHECKING:
    from leptonstore.daemon.access import Principal

METRICS_BYTES_MAX = 16 << 10  # of one ref's, as JSON
AUTHOR_CHARS_MAX = 200
MayReach = Callable[["Principal", Session, list[str], Set[str]], None]


# Who asked, under which id, for what: an id that is used again for something else is another publication, as in `_written_by`.
_Asked = tuple[str, str, frozenset[tuple[str, str | None]]]


class _Done(Exception):
    """The entry is there already."""


class Publisher:
    """Of one daemon. Any thread.

    may_reach: raises NotPermitted unless a principal that is limited to datasets may publish these commits from its session; None:
    nobody can tell, and such principals publish nothing.
    """

    def __init__(self, store: Store, may_reach: MayReach | None = None) -> None:
        self._store, self._may_reach = store, may_reach
        self._guard = threading.Lock()
        self._done: OrderedDict[_Asked, int] = OrderedDict()  # -> sequence

    def publish(self, principal: Principal, session: Session | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """{sequence, again}: of the entry that moved the refs; again: an earlier request did. session=None: only look for it.

        Raises BadInput, NotPermitted, Conflict, CommitExpired, StoreFull.
        """
        told = Arguments("publish", arguments)
        id = _identity(told)
        updates = [_update(one) for one in told.listed("updates", bounds.PUBLISH_UPDATES_MAX)]
        for update in updates:
            principal.require(OPERATIONS["publish"], dataset_of(update.name))
            _require_write(principal, update.name)
        action = told.text("action", most=100)
        author = told.text("author", "", most=AUTHOR_CHARS_MAX)
        ends = frozenset(hex_digest(one, "'ends' of 'publish'") for one in told.listed("ends", 1_000_000))
        found = self._found(principal, id, told.number("since", 0, 1 << 62, None), updates)
        if found is not None:
            return {"sequence": found, "again": True}
        if session is None:
            raise BadInput("'publish' needs 'session'")
        with session.alone:
            found = self._known(principal, id, updates)
            if found is not None:
                return {"sequence": found, "again": True}
            done = self._publish(principal, session, id, action, updates, author, ends)
        return {**done, "new_bytes": session.store.new_bytes}

    def _publish(
        self,
        principal: Principal,
        session: Session,
        id: str,
        action: str,
        updates: list[RefUpdate],
        author: str,
        ends: frozenset[str],
    ) -> dict[str, Any]:
        made = [update.new for update in updates if update.new is not None]
        if not _all_datasets(principal):
            self._require_reach(principal, session, [*made, *ends], ends)

        def decide(state: LogState) -> tuple[RefUpdate, ...]:
            if self._landed(session.store, state, updates, id):
                raise _Done
            for update in updates:
                if update.name not in state.refs and update.new is not None:
                    check_new(update.name.rsplit("/", 1)[1])
            return tuple(updates)

        try:
            session.store.publish(action, decide, author or principal.name, ends, write_id=id)
            again = False
        except _Done:
            again = True
        sequence = self._sequence_of(session.store, updates)
        self._remember(principal, id, updates, sequence)
        return {"sequence": sequence, "again": again}

    def _require_reach(self, principal: Principal, session: Session, commits: list[str], ends: Set[str]) -> None:
        if not commits:
            return
        if self._may_reach is None:
            raise NotPermitted(
                "this credential is limited to some datasets, and this daemon cannot tell what a version reaches: publish with one "
                "that may write the whole store"
            )
        self._may_reach(principal, session, commits, ends)

    # -- finding an earlier one ----------------------------------------------------------------------------------------

    def _known(self, principal: Principal, id: str, updates: list[RefUpdate]) -> int | None:
        with self._guard:
            return self._done.get(_asked(principal, id, updates))

    def _remember(self, principal: Principal, id: str, updates: list[RefUpdate], sequence: int) -> None:
        with self._guard:
            self._done[_asked(principal, id, updates)] = sequence
            while len(self._done) > bounds.PUBLISHED_REMEMBERED:
                self._done.popitem(last=False)

    def _found(self, principal: Principal, id: str, since: int | None, updates: list[RefUpdate]) -> int | None:
        """The sequence of the entry with this id. since: the last entry that the client knew before it asked for the first time; only
        then is the log searched (a first request does not ask)."""
        known = self._known(principal, id, updates)
        if known is not None or since is None:
            return known
        self._store.refresh()
        last = self._store.state.sequence
        for sequence in range(last, max(since, last - bounds.PUBLISH_LOOK_BACK), -1):
            if self._written_by(self._store, sequence, updates, id):
                return sequence
        return None

    def _landed(self, store: Store, state: LogState, updates: list[RefUpdate], id: str) -> bool:
        """Whether the refs are where they shall be, by an entry with this id."""
        records = [(state.refs.get(update.name), update.new) for update in updates]
        if not records or any(record is None or record.commit != new for record, new in records):
            return False
        return any(
            record is not None and self._written_by(store, record.sequence, updates, id) for record, _ in records
        )

    def _written_by(self, store: Store, sequence: int, updates: list[RefUpdate], id: str) -> bool:
        """Whether entry `sequence` has this id, and moved just these refs: an id that somebody copied from the log finds nothing else."""
        body = store.entry(sequence)
        if body is None or body.get("write_id") != id:
            return False
        moved = {ref["name"]: ref["new"] for ref in body["refs"]}
        return moved == {update.name: update.new for update in updates}

    def _sequence_of(self, store: Store, updates: list[RefUpdate]) -> int:
        state = store.state
        found = [state.refs[update.name].sequence for update in updates if update.name in state.refs]
        return max(found, default=state.sequence)


def _asked(principal: Principal, id: str, updates: list[RefUpdate]) -> _Asked:
    return principal.id, id, frozenset((update.name, update.new) for update in updates)


def dataset_of(ref: str) -> str:
    """The dataset whose grants rule over a ref: all kinds of a name are one. Raises BadInput for what is no ref."""
    parts = ref.split("/")
    if len(parts) != 3:
        raise BadInput(f"{ref!r} is no ref: its name is KIND/NAME/BRANCH")
    return check_name(parts[1])


def _require_write(principal: Principal, ref: str) -> None:
    if not principal.may(Scope.WRITE, dataset_of(ref)):
        raise NotPermitted(
            f"'publish' of dataset {dataset_of(ref)!r} needs the scope 'write'; this credential does not have it"
        )


def _all_datasets(principal: Principal) -> bool:
    return principal.may(Scope.WRITE)


def _identity(told: Arguments) -> str:
    id = str(told.text("id", most=32))
    if len(id) != 32 or not set(id) <= set("0123456789abcdef"):
        raise BadInput("'id' of 'publish' must be 32 hex digits")
    return id


def _update(value: Any) -> RefUpdate:
    if not isinstance(value, dict):
        raise BadInput("'updates' of 'publish' must be objects")
    name = name_of_ref(value.get("name"), "'name' of an update")
    dataset_of(name)
    ref_name(*name.split("/"))
    old, new = (
        None if value.get(key) is None else hex_digest(value[key], f"{key!r} of an update") for key in ("old", "new")
    )
    metrics, tag = value.get("metrics", {}), value.get("tag", False)
    if not isinstance(metrics, dict) or not isinstance(tag, bool):
        raise BadInput("'metrics' of an update must be an object, and 'tag' true or false")
    if len(json.dumps(metrics)) > METRICS_BYTES_MAX:
        raise BadInput(f"'metrics' of an update are over {METRICS_BYTES_MAX:,} bytes")
    return RefUpdate(name, old, new, metrics, tag)
