"""What one client puts into a served store: values wait here, go to a write session of a daemon in batches, and are published from there.

    put -> waiting (WIRE_PUT_BYTES) -> find, in the session: which of them are new -> put, acknowledged -> flush or publish
           memory here                 one thread, one batch on its way while the next one fills       durable

What was acknowledged and not flushed is the daemon's alone: when that ends (or forgets an idle session), it is gone, and the work has to be
done again (CommitExpired), as when garbage collection took it. What was flushed is found by its digests. So a session that is lost with
nothing in it is opened again, and nobody notices.
"""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import (
    CommitExpired,
    Conflict,
    FormatDamaged,
    LeptonError,
    NotFound,
    StoreFull,
    TierUnavailable,
    TooBusy,
)
from leptonstore.format import pack as lpk
from leptonstore.store.log import RefUpdate
from leptonstore.store.wire import messages
from leptonstore.store.wire.address import Host
from leptonstore.store.wire.records import FOUND, PUT_SCHEMA

if TYPE_CHECKING:
    from leptonstore.store.wire.link import Link


class _Waiting(NamedTuple):
    """A value that was not sent yet."""

    kind: int
    data: memoryview
    content: int
    plane_width: int


class _Session(NamedTuple):
    id: str
    host: Host


class RemoteWriter:
    """One client's unpublished work. Any thread. A failure while a batch is sent comes with the next call; then what was put since the last
    flush is forgotten."""

    def __init__(self, link: Link, base: Callable[[], int]) -> None:
        """base: up to which log entry garbage collection does not concern this client's work (LogState.gc_sequence)."""
        self._link, self._base = link, base
        self.after_fork()

    def after_fork(self) -> None:
        """In a child process: what the parent put stays the parent's."""
        self._lock = threading.RLock()
        self._session: _Session | None = None
        self._waiting: dict[Digest, _Waiting] = {}
        self._waiting_bytes = 0
        self._leaving: dict[Digest, _Waiting] = {}  # on their way
        self._sent: set[Digest] = set()  # the daemon has them, not durable yet
        self._sent_bytes = 0
        self._made: set[Digest] = set()  # durable, or found there; not published yet
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[set[Digest]] | None = None
        self._new_before = self._new_now = 0  # stored bytes that earlier sessions added, and this one

    @property
    def new_bytes(self) -> int:
        """Stored bytes that were added, as the daemon said last."""
        return self._new_before + self._new_now

    def _tell(self, told: Mapping[str, Any]) -> None:
        if isinstance(told.get("new_bytes"), int):
            self._new_now = told["new_bytes"]

    @property
    def session(self) -> str | None:
        """The id of the session, None when nothing was put."""
        session = self._session
        return None if session is None else session.id

    # -- what is put ---------------------------------------------------------------------------------------------

    def __contains__(self, digest: Digest) -> bool:
        """Whether this was put by this object since it published last."""
        with self._lock:
            return digest in self._waiting or digest in self._leaving or digest in self._sent or digest in self._made

    def unpublished(self, digest: Digest) -> tuple[int, bytes] | None:
        """(kind, bytes) of what is still here."""
        with self._lock:
            found = self._waiting.get(digest) or self._leaving.get(digest)
        return None if found is None else (found.kind, bytes(found.data))

    def is_unflushed(self, digests: Iterable[Digest]) -> bool:
        """Whether some were put here and cannot be read yet."""
        with self._lock:
            if not (self._waiting or self._leaving or self._sent):
                return False
            return any(one in self._sent or one in self._waiting or one in self._leaving for one in digests)

    def add(self, digest: Digest, kind: int, data: Buffer, content: int, plane_width: int = 0) -> None:
        """Put a value, or a list of pieces that were put before. `data` must not change until the next flush. Raises StoreFull, and what
        else the daemon said of earlier ones."""
        view = memoryview(data).cast("B")
        with self._lock:
            if digest in self:
                return
            self._waiting[digest] = _Waiting(kind, view, content, plane_width if plane_width in (2, 4, 8) else 0)
            self._waiting_bytes += len(view)
            if self._waiting_bytes >= limits.WIRE_PUT_BYTES or len(self._waiting) >= limits.WIRE_PUT_VALUES:
                self._send()

    def known(self, digests: Sequence[Digest]) -> list[bool]:
        """Whether `add` of each would send nothing. What is found is relied on by the next publication."""
        with self._lock:
            asked = [digest for digest in dict.fromkeys(digests) if digest not in self]
            found = self._found(asked) if asked else set()
            answer = [digest in found or digest in self for digest in digests]
            self._make(found)
            return answer

    def _make(self, digests: Iterable[Digest]) -> None:
        """Locked. These are there, and need not be asked for again."""
        if len(self._made) > limits.WIRE_FACTS_KEPT:
            self._made.clear()
        self._made.update(digests)

    def _found(self, digests: Sequence[Digest]) -> set[Digest]:
        there: set[Digest] = set()
        for first in range(0, len(digests), limits.WIRE_GET_DIGESTS):
            some = digests[first : first + limits.WIRE_GET_DIGESTS]
            there.update(self._in_session(functools.partial(self._there, digests=some)))
        return there

    def _there(self, session: _Session, digests: Sequence[Digest]) -> set[Digest]:
        """Which of these the session's store has."""
        data = self._link.ask("find", _of(session), messages.payload_of(digests), session.host)
        rows = np.frombuffer(data[: len(data) // FOUND.itemsize * FOUND.itemsize], FOUND)
        if len(rows) != len(digests):
            raise FormatDamaged(f"the answer of {self._link.url} to 'find' is damaged")
        return {digest for digest, kind in zip(digests, rows["kind"].tolist(), strict=True) if kind}

    # -- sending -------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Locked. Have what waits sent by the other thread, when what it sent before is done."""
        self._settle()
        if self._sent_bytes >= limits.WIRE_FLUSH_BYTES:
            self._flush()
        if not self._waiting:
            return
        self._leaving, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "lepton-put")
        self._job = self._pool.submit(self._sent_off, self._open(), self._leaving)

    def _settle(self) -> None:
        """Locked. Wait for what is on its way. Raises what went wrong with it; then all since the last flush is forgotten."""
        job, self._job = self._job, None
        if job is None:
            return
        try:
            new = self._result(job)
        except BaseException as error:
            self._forget(error)
            raise self._lost(error) from None
        self._make(self._leaving.keys() - new)
        self._sent |= new
        self._sent_bytes += sum(len(self._leaving[digest].data) for digest in new)
        self._leaving = {}

    def _result(self, job: Future[set[Digest]]) -> set[Digest]:
        """Locked. What was new of a batch; sent once more when its session is gone and held nothing."""
        try:
            return job.result()
        except (NotFound, TierUnavailable):
            if self._sent:
                raise
        self._session = None
        return self._sent_off(self._open(), self._leaving)

    def _sent_off(self, session: _Session, values: dict[Digest, _Waiting]) -> set[Digest]:
        """In the other thread: send what the daemon lacks; which that was."""
        there = self._there(session, list(values))
        new = [digest for digest in values if digest not in there]
        if new:
            batches = [_batch([(digest, values[digest]) for digest in some]) for some in _stretches(new, values)]
            self._tell(self._link.send("put", _of(session), session.id, batches, session.host))
        return set(new)

    # -- the session ---------------------------------------------------------------------------------------------

    def _open(self) -> _Session:
        """Locked. The session; a new one where there is none."""
        if self._session is None:
            self._new_before, self._new_now = self.new_bytes, 0
            told = self._link.act("open", {"base": self._base()})
            self._session = _Session(str(told.get("session")), self._link.hosts[0])
        return self._session

    def _in_session(self, work: Callable[[_Session], Any]) -> Any:
        """Locked. `work` in the session; in a new one when that is gone and held nothing. Raises CommitExpired when it did."""
        self._settle()
        for attempt in range(2):
            try:
                return work(self._open())
            except (NotFound, TierUnavailable) as error:
                if attempt or self._sent:
                    self._forget(error)
                    raise self._lost(error) from None
                self._session = None
        raise AssertionError

    def _lost(self, error: BaseException) -> BaseException:
        if not isinstance(error, NotFound | TierUnavailable):
            return error
        return CommitExpired(
            f"the daemon lost what was put and not flushed ({error}): nothing was published; run it again (what it has is not sent again)"
        )

    def _forget(self, error: BaseException | None = None) -> None:
        """Locked. What is not durable is nobody's. error: by which it was lost; the session is not used again when it was lost itself."""
        if error is None or isinstance(error, NotFound | TierUnavailable):
            self._session = None
        self._waiting, self._waiting_bytes, self._leaving = {}, 0, {}
        self._sent, self._sent_bytes, self._made = set(), 0, set()

    # -- the end of a stretch of work ----------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether something is not durable yet."""
        with self._lock:
            return bool(self._waiting or self._leaving or self._sent)

    def flush(self) -> None:
        """Make durable what was put. Raises StoreFull, CommitExpired."""
        with self._lock:
            self._send()
            self._settle()
            self._flush()

    def _flush(self) -> None:
        """Locked, and nothing on its way."""
        if self._sent:
            with self._forgetting():
                self._tell(self._in_session(lambda session: self._link.act("flush", _of(session), host=session.host)))
            self._make(self._sent)
            self._sent, self._sent_bytes = set(), 0

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """Locked. What takes away what the daemon's session had takes it away here, too: it has to be put again."""
        try:
            yield
        except (StoreFull, CommitExpired) as error:
            self._forget(error)
            raise

    def publish(
        self, action: str, updates: Sequence[RefUpdate], author: str, ends: Set[str], since: int, id: str
    ) -> None:
        """Make durable what was put, and move refs in the same log entry. since: the last entry that was known before the first try with
        this `id`. Raises Conflict, CommitExpired, StoreFull, NotPermitted."""
        with self._lock:
            self._send()
            self._settle()
            body = {
                "id": id,
                "action": action,
                "updates": [update.to_json() for update in updates],
                "ends": sorted(ends),
                "author": author,
            }
            with self._forgetting():
                try:
                    session = self._open()
                    self._tell(self._link.act("publish", {**body, **_of(session)}, host=session.host))
                except (NotFound, TierUnavailable) as error:
                    self._published_anyway(body, since, error)
            self._sent, self._sent_bytes, self._made = set(), 0, set()

    def _published_anyway(self, body: dict[str, Any], since: int, error: LeptonError) -> None:
        """After a publication whose answer did not come: whether it went through, by its id, as any daemon of the store knows it."""
        held = bool(self._sent)
        self._session = None
        try:
            self._link.act("publish", {**body, "since": since})
            return
        except Conflict:
            raise
        except (TierUnavailable, TooBusy) as silent:
            self._forget(error)
            raise TierUnavailable(
                f"the daemon went away before it answered, and nobody tells whether this was published ({silent}): when one answers "
                "again, look whether the version is there (`lepton log`) before you run it again",
                self._link.url,
            ) from None
        except LeptonError:
            pass  # the daemon that answers knows of no such publication
        if held:
            self._forget(error)
            raise self._lost(error) from None
        session = self._open()
        self._tell(self._link.act("publish", {**body, **_of(session), "since": since}, host=session.host))

    def close(self) -> None:
        """End the session; what was not flushed is forgotten."""
        with self._lock:
            session, self._session = self._session, None
            job, self._job = self._job, None
            if job is not None:
                with suppress(BaseException):
                    job.result()
            self._forget()
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
        if session is not None:
            with suppress(LeptonError):
                self._link.act("close", _of(session), host=session.host, patience_s=0)


def _of(session: _Session) -> dict[str, Any]:
    """The argument that names it."""
    return {"session": session.id}


def new_id() -> str:
    """By which a publication is found again."""
    return secrets.token_hex(16)


def _stretches(digests: Sequence[Digest], values: dict[Digest, _Waiting]) -> Iterable[list[Digest]]:
    """WIRE_PUT_BYTES each: one batch."""
    some: list[Digest] = []
    room = limits.WIRE_PUT_BYTES
    for digest in digests:
        if some and room < len(values[digest].data):
            yield some
            some, room = [], limits.WIRE_PUT_BYTES
        some.append(digest)
        room -= len(values[digest].data)
    if some:
        yield some


def _batch(rows: Sequence[tuple[Digest, _Waiting]]) -> pa.RecordBatch:
    values = [one for _, one in rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(one.data) for one in values], out=offsets[1:])
    buffer = pa.allocate_buffer(int(offsets[-1]))
    out, at = memoryview(buffer).cast("B"), 0
    for one in values:
        out[at : at + len(one.data)] = one.data
        at += len(one.data)
    data = pa.Array.from_buffers(pa.large_binary(), len(rows), [None, pa.py_buffer(offsets), buffer])
    arrays = [
        pa.array([digest for digest, _ in rows], PUT_SCHEMA.field(0).type),
        pa.array([one.kind for one in values], pa.uint8()),
        pa.array([one.content for one in values], pa.uint8()),
        pa.array([one.plane_width for one in values], pa.uint8()),
        data,
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=PUT_SCHEMA)


assert lpk.KIND_CHUNK == 1 and lpk.KIND_CHUNK_LIST == 2, "what a put calls them (docs/WIRE.md)"
