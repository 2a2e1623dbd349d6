"""Write sessions: what clients have put and not yet published, each in a Store object of its own.

    open -> put ... -> flush -> put ... -> publish -> ... -> close

Invariants:
- A session belongs to the principal that opened it; nobody else can name it.
- One session's failure (a full disk, a fence, an erasure) makes that session forget what it had, and touches no other.
- A session that nobody used for SESSION_IDLE_S is closed; what was put and neither flushed nor published is forgotten, as when a process
  that writes to the store dies.
- Bytes are checked against their digest before the store sees them; a long value against its own, read back piece by piece.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from blake3 import blake3

from leptonstore.daemon import bounds
from leptonstore.daemon.digest_set import DigestSet
from leptonstore.daemon.sight import Visible
from leptonstore.digest import Digest, digest_of
from leptonstore.errors import BadInput, ChunkCorrupt, FormatDamaged, NotFound, TooBusy
from leptonstore.format import pack as lpk
from leptonstore.store import Store
from leptonstore.store.wire.records import PLANE_WIDTHS, PUT_SCHEMA

if TYPE_CHECKING:
    from leptonstore.daemon.access import Principal


class Put(NamedTuple):
    """What a session was given: records, and plain bytes of them."""

    records: int
    bytes: int


class Session:
    """One client's unpublished work. Several threads may put at once; `alone` is for what ends a stretch of work."""

    def __init__(self, id: str, principal: Principal, store: Store, sees: Visible | None, now: float) -> None:
        self.id, self.principal, self.store = id, principal, store
        self.last_used, self.under_way = now, 0
        self.ended = False  # it was closed; who still works in it is the one that ends it
        self.alone = threading.RLock()
        self.put_total = Put(0, 0)
        self._guard = threading.Lock()
        # What was put, and what may be seen, of a principal that is limited to datasets: what it publishes may reach only that.
        self.own, self._sees = DigestSet(store.cache_path("sessions")), sees

    def owns(self, digests: Sequence[Digest]) -> list[bool]:
        """Of each, whether it was put here. (Of a principal that sees everything nothing is remembered.)"""
        return self.own.contains(digests)

    def put(self, batch: pa.RecordBatch) -> Put:
        """Keep the records of one batch of PUT_SCHEMA. Raises BadInput, ChunkCorrupt (a digest that is not the data's), StoreFull."""
        if batch.nbytes > bounds.PUT_BATCH_BYTES_MAX:
            raise BadInput(
                f"a batch of {batch.nbytes:,} bytes: put at most {bounds.PUT_BATCH_BYTES_MAX:,} bytes at a time"
            )
        if any(column.null_count for column in batch.columns):
            raise BadInput("a batch of 'put' has a null")
        digests, kinds, contents, widths = (batch.column(at).to_pylist() for at in range(4))
        data, size = batch.column(4), 0
        for row, (digest, kind, content, width) in enumerate(zip(digests, kinds, contents, widths, strict=True)):
            if content not in (lpk.CONTENT_DATA, lpk.CONTENT_META) or width not in PLANE_WIDTHS:
                raise BadInput(f"a record of content {content} and plane width {width}: there is no such thing")
            view = memoryview(data[row].as_buffer()).cast("B")
            size += len(view)
            if kind == lpk.KIND_CHUNK:
                self._put_chunk(digest, view, content, width)
            elif kind == lpk.KIND_CHUNK_LIST:
                self._put_list(digest, view, content)
            else:
                raise BadInput(f"a record of kind {kind}: clients put chunks (1) and chunk lists (2)")
            if self._sees is not None:
                self.own.add([digest])
        with self._guard:
            self.put_total = Put(self.put_total.records + batch.num_rows, self.put_total.bytes + size)
        return Put(batch.num_rows, size)

    def _put_chunk(self, digest: Digest, view: memoryview, content: int, width: int) -> None:
        if len(view) > self.store.config.chunks.cut_above:
            raise BadInput(
                f"a chunk of {len(view):,} bytes: this store cuts above {self.store.config.chunks.cut_above:,}"
            )
        if digest_of(view) != digest:
            raise ChunkCorrupt(digest.hex(), "-", "the bytes that were put have another digest; nothing of it was kept")
        self.store.put_checked(digest, view, content, width)

    def _put_list(self, digest: Digest, view: memoryview, content: int) -> None:
        """A long value by its pieces, all of which are here: were put, or are known to the store."""
        try:
            pieces = lpk.parse_chunk_list(bytes(view)).pieces
        except FormatDamaged as error:
            raise BadInput(f"a chunk list that was put is damaged: {error}") from None
        largest = max((length for _, length in pieces), default=0)
        if largest > self.store.config.chunks.cut_above:
            raise BadInput(
                f"a piece of {largest:,} bytes: this store cuts above {self.store.config.chunks.cut_above:,}"
            )
        missing = self._lacking([piece for piece, _ in pieces])
        if missing is not None:
            raise BadInput(f"piece {missing.hex()[:16]}… of a long value is not here: put it before its list")
        hasher = blake3()
        for (piece, length), data in zip(pieces, self.store.get_pieces([one for one, _ in pieces]), strict=True):
            if len(data) != length:
                raise ChunkCorrupt(digest.hex(), "-", f"its piece {piece.hex()[:16]} is not {length} plain bytes")
            hasher.update(data)
        if hasher.digest() != digest:
            raise ChunkCorrupt(digest.hex(), "-", "its pieces do not add up to it; nothing of it was kept")
        self.store.put_chunk_list(digest, list(pieces), content)

    def _lacking(self, pieces: Sequence[Digest]) -> Digest | None:
        """The first piece that is not here. What its principal may not see is not here: else the list [piece], which has the piece's own
        digest, would count as put by it, and be shown to it."""
        if self._sees is not None:
            others = [piece for piece, mine in zip(pieces, self.own.contains(pieces), strict=True) if not mine]
            hidden = next((piece for piece, seen in zip(others, self._sees(others), strict=True) if not seen), None)
            if hidden is not None:
                return hidden
        return next((piece for piece in pieces if not self.store.known(piece)), None)


class Sessions:
    """The sessions of a daemon. Any thread. `open_store`: a new Store object of the daemon's store."""

    def __init__(self, open_store: Callable[[], Store], clock: Callable[[], float] = time.monotonic) -> None:
        self._open_store, self._clock = open_store, clock
        self._guard = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._opening: dict[str, int] = {}  # principal -> sessions that are being opened
        self.closed = False

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, principal: Principal, sees: Visible | None, base: int | None = None) -> Session:
        """A new session. Raises TooBusy when there are too many.

        sees: what its principal may see, None for all; see `Session`. base: the `gc_sequence` of the state that the client began with:
        what it counts on may have been taken since.
        """
        self.expire()
        with self._guard:
            mine = sum(session.principal.id == principal.id for session in self._sessions.values())
            opening = sum(self._opening.values())
            if self.closed:
                raise TooBusy("the daemon is about to end: no new writes", 5.0)
            if len(self._sessions) + opening >= bounds.SESSIONS_MAX:
                raise TooBusy(f"{bounds.SESSIONS_MAX} write sessions are open already: try again later", 5.0)
            if mine + self._opening.get(principal.id, 0) >= bounds.SESSIONS_OF_ONE_MAX:
                raise TooBusy(
                    f"this credential has {bounds.SESSIONS_OF_ONE_MAX} write sessions open already: close one of them",
                    5.0,
                )
            self._opening[principal.id] = self._opening.get(principal.id, 0) + 1
        try:
            store = self._open_store()
            if base is not None:
                store.began_at(base)
            session = Session(secrets.token_hex(16), principal, store, sees, self._clock())
        finally:
            with self._guard:
                self._opening[principal.id] -= 1
                if not self._opening[principal.id]:
                    del self._opening[principal.id]
        with self._guard:
            self._sessions[session.id] = session
        return session

    @contextmanager
    def use(self, principal: Principal, id: str) -> Iterator[Session]:
        """The session `id`, which does not time out meanwhile. Raises NotFound, also for another principal's."""
        with self._guard:
            session = self._sessions.get(id)
            if session is None or session.principal.id != principal.id:
                raise NotFound(
                    "no such write session: it was closed, or nobody used it for "
                    f"{bounds.SESSION_IDLE_S / 60:.0f} minutes, or the daemon was started anew; put the work again"
                )
            session.under_way += 1
        try:
            yield session
        finally:
            with self._guard:
                session.under_way -= 1
                session.last_used = self._clock()
                last = session.ended and not session.under_way
            if last:
                session.store.close()

    def peek(self, principal: Principal, id: str) -> Session | None:
        """The session `id`, to look at; None when there is none."""
        with self._guard:
            session = self._sessions.get(id)
            return session if session is not None and session.principal.id == principal.id else None

    def close(self, principal: Principal, id: str) -> None:
        """End a session; what it did not publish is forgotten. One that is gone already is no error."""
        with self._guard:
            session = self._sessions.get(id)
            if session is None or session.principal.id != principal.id:
                return
            del self._sessions[id]
        self._end(session)

    def expire(self) -> int:
        """Close what nobody has used for SESSION_IDLE_S; returns how many."""
        before = self._clock() - bounds.SESSION_IDLE_S
        with self._guard:
            idle = [one for one in self._sessions.values() if not one.under_way and one.last_used <= before]
            for session in idle:
                del self._sessions[session.id]
        for session in idle:
            self._end(session)
        return len(idle)

    def close_all(self) -> None:
        """Close all; none is opened any more."""
        with self._guard:
            self.closed = True
            every, self._sessions = list(self._sessions.values()), {}
        for session in every:
            self._end(session)

    def every(self) -> list[Session]:
        """Those that are open."""
        with self._guard:
            return list(self._sessions.values())

    @property
    def unflushed(self) -> bool:
        """Whether one of them has something that is not durable yet."""
        return any(session.store.unflushed for session in self.every())

    def _end(self, session: Session) -> None:
        """It is listed no more. A request that is under way in it goes on until it ends."""
        with self._guard:
            session.ended = True
            if session.under_way:
                return
        session.store.close()


def put_batches(
    session: Session, schema: pa.Schema, batches: Iterator[pa.RecordBatch], ack: Callable[[Put], None]
) -> Put:
    """All batches of a `put`, each acknowledged when the session has it. Raises BadInput for another schema."""
    if not schema.equals(PUT_SCHEMA):
        raise BadInput(f"'put' takes batches of {PUT_SCHEMA.to_string(truncate_metadata=True)!r}")
    total = Put(0, 0)
    for batch in batches:
        put = session.put(batch)
        total = Put(total.records + put.records, total.bytes + put.bytes)
        ack(total)
    return total
