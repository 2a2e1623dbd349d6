"""The log: the one history that all writers of a store agree on.

Invariants:
- Entry n is created if absent and never changes; it names the digest of entry n-1, so the log is a chain.
- The state of the store (refs, packs) is the log replayed from its start, or from a snapshot of an earlier state.
- An entry is created only after every pack that it lists, or that its commits rely on, is durable.
A lost race is not an error: the loser replays what came in between and decides again (`append` calls it back).

Entry: {"sequence", "write_id", "previous", "time_ns", "author", "host", "action",
        "packs_added": [{"id", "bytes", "content"}], "packs_removed": [id], "refs": [{"name", "old", "new", "metrics"}]}
"""

from __future__ import annotations

import getpass
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.digest import digest_of
from leptonstore.errors import Conflict, FormatDamaged
from leptonstore.format import framed
from leptonstore.tiers.roles import HomeWriter

HINT = "HEAD"
GENESIS = bytes(32)
REF_NAME_CHARS_MAX = 4 * limits.NAME_CHARS_MAX


@dataclass(frozen=True)
class PackRecord:
    """A pack that the log lists: its size in bytes and its content (format.pack.CONTENT_*)."""

    bytes: int
    content: int


@dataclass(frozen=True)
class RefUpdate:
    """Move ref `name` from `old` to `new` (hex digests of commits; None: absent). `metrics` is JSON-able."""

    name: str
    old: str | None
    new: str | None
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RefRecord:
    """What a ref points to, and what its log entry says of the move."""

    commit: str
    sequence: int
    time_ns: int
    author: str
    host: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Proposal:
    """What a writer wants to append."""

    action: str
    packs_added: dict[str, PackRecord] = field(default_factory=dict)
    refs: tuple[RefUpdate, ...] = ()


@dataclass
class LogState:
    """The log up to and including entry `sequence`, whose bytes have digest `head`."""

    sequence: int = 0
    head: bytes = GENESIS
    refs: dict[str, RefRecord] = field(default_factory=dict)
    packs: dict[str, PackRecord] = field(default_factory=dict)

    def apply(self, data: bytes, what: str) -> dict[str, Any]:
        """Advance by one entry and return its body. Raises FormatDamaged or FormatTooNew; then nothing has changed."""
        body = framed.parse(data, "log", what)
        try:
            if body["sequence"] != self.sequence + 1 or body["previous"] != self.head.hex():
                raise ValueError("it does not follow the entry before it")
            added = {item["id"]: PackRecord(int(item["bytes"]), int(item["content"])) for item in body["packs_added"]}
            removed = [str(pack) for pack in body["packs_removed"]]
            moves = [(str(ref["name"]), ref["new"], dict(ref["metrics"])) for ref in body["refs"]]
            stamp = (self.sequence + 1, int(body["time_ns"]), str(body["author"]), str(body["host"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatDamaged(f"{what} is damaged: {error}") from None
        self.packs.update(added)
        for pack in removed:
            self.packs.pop(pack, None)
        for name, new, metrics in moves:
            if new is None:
                self.refs.pop(name, None)
            else:
                self.refs[name] = RefRecord(str(new), *stamp, metrics)
        self.sequence += 1
        self.head = digest_of(data)
        return body

    def to_json(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "sequence": self.sequence,
            "head": self.head.hex(),
            "refs": {name: vars(record) for name, record in self.refs.items()},
            "packs": {pack: vars(record) for pack, record in self.packs.items()},
        }

    @classmethod
    def from_json(cls, body: dict[str, Any], what: str) -> LogState:
        """Raises FormatDamaged."""
        try:
            return cls(
                sequence=int(body["sequence"]),
                head=bytes.fromhex(body["head"]),
                refs={str(name): RefRecord(**record) for name, record in body["refs"].items()},
                packs={str(pack): PackRecord(**record) for pack, record in body["packs"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatDamaged(f"{what} is damaged: {error}") from None


def _document(sequence: int) -> str:
    return f"log/{sequence:020d}"


class Log:
    """Reads and appends entries of one home. Not for use by several threads at once; the store locks."""

    def __init__(self, home: HomeWriter, url: str) -> None:
        self._home, self._url = home, url

    def read(self, sequence: int) -> bytes | None:
        """The bytes of an entry, None when there is none."""
        return self._home.read_document(_document(sequence), limits.LOG_ENTRY_BYTES_MAX)

    def load(self) -> LogState:
        """The state at the end of the log. Raises FormatDamaged (an entry is missing or altered) or FormatTooNew."""
        state = self._from_snapshot()
        self.replay(state)
        names = self._home.documents("log")
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
                state = LogState.from_json(framed.parse(data, "snapshot", what), what)
            except FormatDamaged:
                continue  # snapshots only save time: the entries say the same
            entry = self.read(state.sequence)
            if entry is not None and digest_of(entry) == state.head:
                return state
        return LogState()

    def replay(self, state: LogState, watch: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Apply every entry after `state`; `watch` sees each body."""
        while (data := self.read(state.sequence + 1)) is not None:
            body = state.apply(data, f"log entry {state.sequence + 1} of {self._url}")
            if watch is not None:
                watch(body)

    def append(self, state: LogState, decide: Callable[[LogState], Proposal]) -> None:
        """Append what `decide` proposes for the newest state, and advance `state` past it.

        `decide` is called again after each lost race and raises Conflict when its wish is impossible by now. When this
        returns, the entry is durable. Raises StoreFull; Conflict after LOG_APPEND_TRIES_MAX lost races.
        """
        for _ in range(limits.LOG_APPEND_TRIES_MAX):
            self.replay(state)
            proposal = decide(state)
            data = self._encode(state, proposal)
            if not self._home.create_document(_document(state.sequence + 1), data) and not self._is_ours(state, data):
                continue
            state.apply(data, f"log entry {state.sequence + 1} of {self._url}")
            self._home.replace_document(HINT, f"{state.sequence}\n".encode())
            if state.sequence % limits.LOG_SNAPSHOT_EVERY == 0:
                self._home.create_document(
                    f"snapshots/{state.sequence:020d}", framed.encode("snapshot", state.to_json())
                )
            return
        raise Conflict(f"{self._url} is too busy: lost {limits.LOG_APPEND_TRIES_MAX} races for the log; run it again")

    def _is_ours(self, state: LogState, data: bytes) -> bool:
        """After "exists": was it we who created it, and only the answer got lost? The write id tells."""
        return self.read(state.sequence + 1) == data

    def _encode(self, state: LogState, proposal: Proposal) -> bytes:
        body = {
            "sequence": state.sequence + 1,
            "write_id": secrets.token_hex(16),
            "previous": state.head.hex(),
            "time_ns": time.time_ns(),
            "author": _author(),
            "host": socket.gethostname(),
            "action": proposal.action,
            "packs_added": [
                {"id": pack, "bytes": record.bytes, "content": record.content}
                for pack, record in sorted(proposal.packs_added.items())
            ],
            "packs_removed": [],
            "refs": [vars(update) for update in proposal.refs],
        }
        return framed.encode("log", body)


def _author() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id that has no name
        return "unknown"


def require_ref(state: LogState, update: RefUpdate) -> None:
    """Raise Conflict unless the ref is where `update` expects it."""
    record = state.refs.get(update.name)
    found = record.commit if record else None
    if found != update.old:
        raise Conflict(
            f"{update.name} was moved by another writer to {(found or 'nothing')[:12]} while this ran "
            f"(expected {(update.old or 'nothing')[:12]}): nothing was published; run the command again"
        )
