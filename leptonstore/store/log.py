"""The log: the one history that all writers of a store agree on.

Invariants:
- Entry n is created if absent and never changes; it names the digest of entry n-1, so the log is a chain.
- The state of the store (refs, packs) is the log replayed from its start, or from a snapshot of an earlier state.
- An entry is created only after every pack that it lists, or that its commits rely on, is durable.
A lost race is not an error: the loser replays what came in between and decides again (`append` calls it back).

Entry: {"sequence", "write_id", "previous", "time_ns", "author", "host", "action",
        "packs_added": [{"id", "bytes", "content"}], "packs_removed": [id], "refs": [{"name", "old", "new", "metrics", "tag"?: true}],
        "settings"?: {name: value, null: taken away}, "requires"?: [feature, see format.framed],
        "fence"?: [pack], "rescue"?: [pack], "forgotten"?: [commit], "placed"?: {pack: [tier]},
        "epoch"?: n, "replaced"?: {commit: commit}, "purged"?: n}

Garbage collection (leptonstore/store/gc.py) speaks through the log: a FENCE condemns packs, which count as absent from there on; a
RESCUE takes that back; packs_removed is appended before the files are deleted. A fence may name packs that no entry lists yet: they
must not be listed any more.

An erasure (leptonstore/store/purge.py) begins an epoch: refs lead to versions without the rows (`replaced` tells which stands for
which), and what was put in an earlier epoch must not be listed any more. `purged` says that what was unreachable then is gone.
"""

from __future__ import annotations

import getpass
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from leptonstore import limits
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, Conflict, FormatDamaged, NotPermitted, StoreFull
from leptonstore.format import framed
from leptonstore.tiers.roles import HomePruner, HomeWriter

HINT = "HEAD"
GENESIS = bytes(32)


class Documents(Protocol):
    """Objects <-> framed documents, in the clear or sealed."""

    def encode(self, kind: str, body: dict[str, Any]) -> bytes:
        """A framed document."""

    def parse(self, data: bytes, kind: str, what: str) -> dict[str, Any]:
        """Its body. Raises FormatDamaged or FormatTooNew."""


@dataclass(frozen=True)
class PackRecord:
    """A pack that the log lists: its size in bytes and its content (format.pack.CONTENT_*)."""

    bytes: int
    content: int


@dataclass(frozen=True)
class RefUpdate:
    """Move ref `name` from `old` to `new` (hex digests of commits; None: absent). `metrics` is JSON-able.

    tag: it is made, and never moves from there; it can be removed.
    """

    name: str
    old: str | None
    new: str | None
    metrics: dict[str, Any] = field(default_factory=dict)
    tag: bool = False

    def to_json(self) -> dict[str, Any]:
        """For a log entry."""
        body = {"name": self.name, "old": self.old, "new": self.new, "metrics": self.metrics}
        return {**body, "tag": True} if self.tag else body


@dataclass(frozen=True)
class RefRecord:
    """What a ref points to, and what its log entry says of the move."""

    commit: str
    sequence: int
    time_ns: int
    author: str
    host: str
    metrics: dict[str, Any]
    tag: bool = False

    def to_json(self) -> dict[str, Any]:
        """For a snapshot."""
        return {name: value for name, value in vars(self).items() if name != "tag" or value}


@dataclass(frozen=True)
class Proposal:
    """What a writer wants to append."""

    action: str
    packs_added: dict[str, PackRecord] = field(default_factory=dict)
    refs: tuple[RefUpdate, ...] = ()
    packs_removed: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)  # name -> JSON-able value; None takes the setting away
    requires: tuple[str, ...] = ()  # features that whoever opens the store must know from now on (format.framed)
    fence: tuple[str, ...] = ()  # packs that count as absent from now on
    rescue: tuple[str, ...] = ()  # condemned packs that count as present again
    forgotten: tuple[str, ...] = ()  # commits whose parents are roots of garbage collection no longer
    placed: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # pack -> the tiers that keep it (store/placement.py)
    author: str = ""  # who the entry says it was; by default the user that runs this
    write_id: str = ""  # by which the entry can be found again; by default 32 random hex digits
    epoch: int = 0  # the epoch that begins with this entry; 0: none does
    replaced: dict[str, str] = field(default_factory=dict)  # commit -> the one that stands for it since an erasure
    purged: int = 0  # nothing is left of what was unreachable when this epoch began; 0: says nothing


@dataclass
class LogState:
    """The log up to and including entry `sequence`, whose bytes have digest `head`.

    A Log advances a copy and puts that in its place (`take_over`): whoever goes through `refs` or `packs` of a state that others share goes
    through those of one moment.
    """

    sequence: int = 0
    head: bytes = GENESIS
    refs: dict[str, RefRecord] = field(default_factory=dict)
    packs: dict[str, PackRecord] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # name -> value; leptonstore/store/quota.py has one
    requires: tuple[str, ...] = ()  # features that the log turned on, sorted
    condemned: dict[str, int] = field(default_factory=dict)  # pack -> the sequence of the fence that names it
    forgotten: set[str] = field(default_factory=set)
    gc_sequence: int = 0  # of the last entry with a fence, a rescue, packs_removed or a new epoch
    placed: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # packs that are not kept by the home alone -> tiers
    epoch: int = 0  # how many erasures there were
    purged: int = 0  # the last epoch whose erasure is complete: less than `epoch` while bytes are still to be removed
    replaced: dict[str, str] = field(default_factory=dict)  # erased commit -> the one without the rows
    # Packs that entries removed since this object was made: what a writer may still have in mind. In no snapshot.
    gone: set[str] = field(default_factory=set, compare=False)

    def stands_for(self, commit: str) -> str:
        """The version (hex) that stands for `commit` since erasures; itself, when it was not erased."""
        for _ in range(len(self.replaced)):
            if commit not in self.replaced:
                break
            commit = self.replaced[commit]
        return commit

    def present(self, pack: str) -> bool:
        """Whether new work may rely on this pack."""
        return pack in self.packs and pack not in self.condemned

    def lost(self, pack: str) -> bool:
        """Whether this pack was condemned or removed while this process looked (listed or not): it counts as absent."""
        return pack in self.condemned or pack in self.gone

    def apply(self, data: bytes, what: str, documents: Documents = framed) -> dict[str, Any]:
        """Advance by one entry and return its body. Raises FormatDamaged or FormatTooNew; then nothing has changed."""
        body = documents.parse(data, "log", what)
        try:
            if body["sequence"] != self.sequence + 1 or body["previous"] != self.head.hex():
                raise ValueError("it does not follow the entry before it")
            added = {
                _hex(item["id"], 32): PackRecord(int(item["bytes"]), int(item["content"]))
                for item in body["packs_added"]
            }
            removed = [_hex(pack, 32) for pack in body["packs_removed"]]
            moves = [
                (
                    str(ref["name"]),
                    None if ref["new"] is None else _hex(ref["new"], 64),
                    dict(ref["metrics"]),
                    ref.get("tag", False) is True,
                )
                for ref in body["refs"]
            ]
            stamp = (self.sequence + 1, int(body["time_ns"]), str(body["author"]), str(body["host"]))
            settings = {**self.settings, **body.get("settings", {})}
            fence, rescue = ([_hex(pack, 32) for pack in body.get(key, ())] for key in ("fence", "rescue"))
            forgotten = [_hex(commit, 64) for commit in body.get("forgotten", ())]
            placed = _placed(body.get("placed", {}))
            replaced = _replaced(body.get("replaced", {}))
            epoch, purged = int(body.get("epoch", self.epoch)), int(body.get("purged", self.purged))
            if not self.epoch <= epoch <= self.epoch + 1 or not self.purged <= purged <= epoch:
                raise ValueError(f"epoch {epoch} (purged: {purged}) does not follow epoch {self.epoch}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatDamaged(f"{what} is damaged: {error}") from None
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.requires = tuple(sorted({*self.requires, *body.get("requires", ())}))
        self.packs.update(added)
        self.placed.update(placed)
        self._apply_gc(rescue, fence, removed, epoch > self.epoch)
        self.forgotten.update(forgotten)
        self.epoch, self.purged = epoch, purged
        self.replaced.update(replaced)
        for name, new, metrics, tag in moves:
            if new is None:
                self.refs.pop(name, None)
            else:
                self.refs[name] = RefRecord(new, *stamp, metrics, tag)
        self.sequence += 1
        self.head = digest_of(data)
        return body

    def _apply_gc(self, rescue: list[str], fence: list[str], removed: list[str], erased: bool) -> None:
        for pack in rescue:
            self.condemned.pop(pack, None)
        self.condemned.update(dict.fromkeys(fence, self.sequence + 1))
        for pack in removed:
            self.packs.pop(pack, None)
            self.placed.pop(pack, None)
            self.condemned.pop(pack, None)
        self.gone.update(removed)
        if fence or rescue or removed or erased:
            self.gc_sequence = self.sequence + 1

    def copy(self) -> LogState:
        """The same state, which `apply` to this one does not change."""
        fresh: dict[str, Any] = {
            name: value.copy() for name, value in vars(self).items() if isinstance(value, dict | set)
        }
        return replace(self, **fresh)

    def take_over(self, other: LogState) -> None:
        """Become `other`, which is not used any more."""
        vars(self).update(vars(other))

    def to_json(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "sequence": self.sequence,
            "head": self.head.hex(),
            "refs": {name: record.to_json() for name, record in self.refs.items()},
            "packs": {pack: vars(record) for pack, record in self.packs.items()},
            "settings": self.settings,
            "requires": list(self.requires),
            "condemned": self.condemned,
            "forgotten": sorted(self.forgotten),
            "gc_sequence": self.gc_sequence,
            **({"placed": self.placed} if self.placed else {}),
            **({"epoch": self.epoch, "purged": self.purged, "replaced": self.replaced} if self.epoch else {}),
        }

    @classmethod
    def from_json(cls, body: dict[str, Any], what: str) -> LogState:
        """Raises FormatDamaged."""
        try:
            return cls(
                sequence=int(body["sequence"]),
                head=bytes.fromhex(body["head"]),
                refs={str(name): RefRecord(**record) for name, record in body["refs"].items()},
                packs={_hex(pack, 32): PackRecord(**record) for pack, record in body["packs"].items()},
                settings=dict(body.get("settings", {})),
                requires=tuple(body.get("requires", ())),
                condemned={_hex(pack, 32): int(fence) for pack, fence in body.get("condemned", {}).items()},
                forgotten={_hex(commit, 64) for commit in body.get("forgotten", ())},
                gc_sequence=int(body.get("gc_sequence", 0)),
                placed=_placed(body.get("placed", {})),
                epoch=int(body.get("epoch", 0)),
                purged=int(body.get("purged", 0)),
                replaced=_replaced(body.get("replaced", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatDamaged(f"{what} is damaged: {error}") from None


def _hex(value: Any, digits: int) -> str:
    """An id of a pack (32) or a digest (64): what becomes part of a path is looked at before. Raises ValueError."""
    if not isinstance(value, str) or len(value) != digits or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"{str(value)[:80]!r} is not {digits} hex digits")
    return value


def _placed(value: Any) -> dict[str, tuple[str, ...]]:
    """Pack -> names of tiers. Raises ValueError, TypeError or AttributeError."""
    found = {}
    for pack, names in value.items():
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"{str(names)[:80]!r} are not the names of tiers")
        found[_hex(pack, 32)] = tuple(names)
    return found


def _replaced(value: Any) -> dict[str, str]:
    """Commit -> commit. Raises ValueError or AttributeError."""
    return {_hex(old, 64): _hex(new, 64) for old, new in value.items()}


def _document(sequence: int) -> str:
    return f"log/{sequence:020d}"


class Log:
    """Reads and appends entries of one home. Not for use by several threads at once; the store locks."""

    def __init__(self, home: HomeWriter, url: str, documents: Documents = framed) -> None:
        """`documents` frames and unframes: `format.framed` itself, or the sealing one of an encrypted store."""
        self._home, self._url, self._documents = home, url, documents
        self._durable = 0  # the last entry that is known to be durable

    def read(self, sequence: int) -> bytes | None:
        """The bytes of an entry, None when there is none."""
        return self._home.read_document(_document(sequence), limits.LOG_ENTRY_BYTES_MAX)

    def load(self) -> LogState:
        """The state at the end of the log. Raises FormatDamaged (an entry is missing or altered) or FormatTooNew."""
        names = self._home.documents("log")  # before the entries are read: others append meanwhile
        state = self._from_snapshot()
        self.replay(state)
        last = max((int(name) for name in names if name.isdigit()), default=0)
        if last > state.sequence:
            raise FormatDamaged(
                f"log entry {state.sequence + 1} of {self._url} is missing, but entry {last} is there: "
                "restore log/ from a copy"
            )
        return state

    def _from_snapshot(self) -> LogState:
        for name in reversed(self._home.documents("snapshots")):
            data = self._home.read_document(f"snapshots/{name}", 1 << 31)
            what = f"snapshot {name} of {self._url}"
            if data is None:
                continue
            try:
                state = LogState.from_json(self._documents.parse(data, "snapshot", what), what)
            except FormatDamaged:
                continue  # snapshots only save time: the entries say the same
            entry = self.read(state.sequence)
            if entry is not None and digest_of(entry) == state.head:
                return state
        return LogState()

    def replay(self, state: LogState, watch: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Apply every entry after `state`; `watch` sees each body."""
        data = self.read(state.sequence + 1)
        if data is None:
            return
        fresh = state.copy()
        try:
            while data is not None:
                body = self._apply(fresh, data)
                if watch is not None:
                    watch(body)
                data = self.read(fresh.sequence + 1)
        finally:
            state.take_over(fresh)

    def _apply(self, state: LogState, data: bytes) -> dict[str, Any]:
        return state.apply(data, f"log entry {state.sequence + 1} of {self._url}", self._documents)

    def append(self, state: LogState, decide: Callable[[LogState], Proposal]) -> None:
        """Append what `decide` proposes for the newest state, and advance `state` past it.

        `decide` is called again after each lost race and raises Conflict when its wish is impossible by now. When this
        returns, the entry is durable. Raises StoreFull; Conflict after LOG_APPEND_TRIES_MAX lost races.
        """
        for _ in range(limits.LOG_APPEND_TRIES_MAX):
            self.replay(state)
            proposal = decide(state)
            data = self._encode(state, proposal)
            self.confirm(state)
            if not self._home.create_document(_document(state.sequence + 1), data) and not self._is_ours(state, data):
                continue
            fresh = state.copy()
            self._apply(fresh, data)
            state.take_over(fresh)
            self._durable = state.sequence
            # The entry stands: that the disk is full now, or the hint another user's, must not look like a failure.
            with suppress(StoreFull, NotPermitted, OSError):
                self._save_time(state)
            return
        raise Conflict(f"{self._url} is too busy: lost {limits.LOG_APPEND_TRIES_MAX} races for the log; run it again")

    def confirm(self, state: LogState) -> None:
        """Make sure that the entries up to `state` are durable, before something is built on them or acknowledged for them.

        Another writer's entry is visible a moment before it is durable, and stays so when that writer dies in between.
        """
        if state.sequence > self._durable:
            self._home.confirm_documents("log")
            self._durable = state.sequence

    def _save_time(self, state: LogState) -> None:
        """Write the hint and, now and then, a snapshot: nothing needs them but speed."""
        self._home.replace_document(HINT, f"{state.sequence}\n".encode())
        if state.sequence % limits.LOG_SNAPSHOT_EVERY == 0:
            data = self._documents.encode("snapshot", state.to_json())
            self._home.create_document(f"snapshots/{state.sequence:020d}", data)

    def checkpoint(self, state: LogState, entries: int, kept: int) -> int:
        """See Store.checkpoint."""
        snapshots = sorted(int(name) for name in self._home.documents("snapshots") if name.isdigit())
        if state.sequence - max(snapshots, default=0) >= entries:
            data = self._documents.encode("snapshot", state.to_json())
            self._home.create_document(f"snapshots/{state.sequence:020d}", data)
            snapshots.append(state.sequence)
        if isinstance(self._home, HomePruner):
            for sequence in snapshots[:-kept]:
                self._home.delete_document(f"snapshots/{sequence:020d}")
        return max(snapshots, default=0)

    def _is_ours(self, state: LogState, data: bytes) -> bool:
        """After "exists": was it we who created it, and only the answer got lost? The write id tells."""
        return self.read(state.sequence + 1) == data

    def _encode(self, state: LogState, proposal: Proposal) -> bytes:
        body = {
            "sequence": state.sequence + 1,
            "write_id": proposal.write_id or secrets.token_hex(16),
            "previous": state.head.hex(),
            "time_ns": time.time_ns(),
            "author": proposal.author or user_name(),
            "host": socket.gethostname(),
            "action": proposal.action,
            "packs_added": [
                {"id": pack, "bytes": record.bytes, "content": record.content}
                for pack, record in sorted(proposal.packs_added.items())
            ],
            "packs_removed": sorted(proposal.packs_removed),
            "refs": [update.to_json() for update in proposal.refs],
        }
        for key in ("fence", "rescue", "forgotten"):
            if getattr(proposal, key):
                body[key] = sorted(getattr(proposal, key))
        for key in ("epoch", "replaced", "purged"):
            if getattr(proposal, key):
                body[key] = getattr(proposal, key)
        if proposal.settings:
            body["settings"] = proposal.settings
        if proposal.placed:
            body["placed"] = {pack: list(names) for pack, names in sorted(proposal.placed.items())}
        if proposal.requires:
            body["requires"] = sorted(proposal.requires)
        return self._documents.encode("log", body)


def user_name() -> str:
    """Of this process's user; "unknown" where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id that has no name
        return "unknown"


def require_ref(state: LogState, update: RefUpdate) -> None:
    """Raise Conflict unless the ref is where `update` expects it, BadInput when it is a tag and would move."""
    record = state.refs.get(update.name)
    if record is not None and record.tag and update.new is not None:
        raise BadInput(f"{update.name} is a tag, which never moves: nothing was published; write to a branch")
    found = record.commit if record else None
    if found != update.old:
        raise Conflict(
            f"{update.name} was moved by another writer to {(found or 'nothing')[:12]} while this ran "
            f"(expected {(update.old or 'nothing')[:12]}): nothing was published; run the command again"
        )
