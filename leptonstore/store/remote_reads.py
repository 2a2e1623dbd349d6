"""Chunks of a served store: what is known of them, and their bytes, many in one request, checked against their digests on arrival.

    digests -> find: kind, length of each (remembered)      -> get: values in order, WIRE_GET_DIGESTS or WIRE_GET_BYTES in a request
               the hot cache of the daemon's own host, where this client may open it, is looked at first

What a daemon sends is trusted no more than a disk: shapes and bounds first, then the digest. A value in pieces is put together here.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from leptonstore import limits
from leptonstore.digest import Digest, digest_of
from leptonstore.errors import ChunkCorrupt, FormatDamaged
from leptonstore.format import pack as lpk
from leptonstore.store.stored import Stored
from leptonstore.store.wire import messages
from leptonstore.store.wire.records import FOUND, parse_found

if TYPE_CHECKING:
    from leptonstore.cache.hot import HotCache
    from leptonstore.store.wire.link import Link

_TYPES = [("kind", pa.uint8()), ("data", pa.large_binary())]
AHEAD_THREADS = 4  # requests of one client that are read ahead
AHEAD_REQUESTS = 2  # of one caller
Session = Callable[[], "str | None"]
_Value = tuple[memoryview, Digest, int]  # bytes, digest, kind


class RemoteChunks:
    """The chunks that a daemon gives: a ChunkFinder. Any thread; after a fork the child goes on."""

    def __init__(self, link: Link, session: Session) -> None:
        """session: the write session, whose unpublished work this client may read, too; None without one."""
        self._link, self._session = link, session
        self._facts: OrderedDict[Digest, Stored] = OrderedDict()
        self.cache: HotCache | None = None
        self.bytes_read = 0
        self.after_fork()

    def after_fork(self) -> None:
        """In a child process: locks and threads of its own."""
        self._lock = threading.Lock()
        self._ahead: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End what is read ahead."""
        with self._lock:
            ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.shutdown(wait=False, cancel_futures=True)

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Do `work` in one of the threads that read ahead."""
        with self._lock:
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(AHEAD_THREADS, "lepton-remote")
            return self._ahead.submit(work)

    # -- what is known -------------------------------------------------------------------------------------------

    def facts(self, digests: Sequence[Digest], fresh: bool = False) -> list[Stored | None]:
        """Of each; None for what this client's credential cannot see. fresh: ask for all, though they were asked for before."""
        found: dict[Digest, Stored | None] = {}
        if not fresh:
            with self._lock:
                for digest in digests:
                    fact = self._facts.get(digest)
                    if fact is not None:
                        found[digest] = fact
        missing = [digest for digest in dict.fromkeys(digests) if digest not in found]
        for first in range(0, len(missing), limits.WIRE_GET_DIGESTS):
            found.update(self._asked(missing[first : first + limits.WIRE_GET_DIGESTS]))
        return [found[digest] for digest in digests]

    def _asked(self, digests: list[Digest]) -> dict[Digest, Stored | None]:
        data = self._link.ask("find", self._mine(), messages.payload_of(digests))
        try:
            rows = np.frombuffer(data, FOUND)
            found = [parse_found(*row) for row in rows.tolist()]
            out = dict(zip(digests, found, strict=True))
        except ValueError as error:
            raise FormatDamaged(f"the answer of {self._link.url} to 'find' is damaged: {error}") from None
        with self._lock:
            for digest, fact in out.items():
                if fact is not None:
                    self._facts[digest] = fact
            while len(self._facts) > limits.WIRE_FACTS_KEPT:
                self._facts.popitem(last=False)
        return out

    def forget(self) -> None:
        """Ask again for everything: garbage collection went on, or a credential was replaced."""
        with self._lock:
            self._facts.clear()

    def _mine(self) -> dict[str, Any]:
        session = self._session()
        return {} if session is None else {"mine": session}

    # -- bytes ---------------------------------------------------------------------------------------------------

    def get(self, digest: Digest) -> bytes:
        """The plain bytes. Raises ChunkMissing, ChunkCorrupt, TierUnavailable, or what the daemon answers."""
        (value,) = self.get_many([digest])
        return value

    def get_many(self, digests: Sequence[Digest]) -> Iterator[bytes]:
        """`get` of each, in order; they come as they are used."""
        for view, digest, kind in self._values(digests):
            yield bytes(view) if kind == lpk.KIND_CHUNK else self._joined(digest, bytes(view))

    def _values(self, digests: Sequence[Digest], check: bool = True) -> Iterator[_Value]:
        """(value, or the list of its pieces; digest; kind) of each, the value checked, unless the caller does that."""
        step = limits.WIRE_GET_DIGESTS if self.cache is None else limits.CACHE_CLAIMS_MAX
        for first in range(0, len(digests), step):
            some = digests[first : first + step]
            if self.cache is None:
                yield from self._received(some, True, check)
                continue
            leases = [self.cache.get(digest) for digest in some]
            rest = self._received(
                [digest for digest, one in zip(some, leases, strict=True) if one is None], True, check
            )
            for digest, lease in zip(some, leases, strict=True):
                yield next(rest) if lease is None else (lease.data, digest, lpk.KIND_CHUNK)

    def _received(self, digests: Sequence[Digest], whole: bool, check: bool = True) -> Iterator[_Value]:
        if not digests:
            return
        arguments = self._mine()

        def request(rows: int) -> bytes:
            return self._link.request("get", {**arguments, "whole": whole}, messages.payload_of(digests[rows:]))

        at = 0
        stream = self._link.stream(request)
        try:
            for batch in stream:
                for kind, view in _rows_of(batch, self._link.url):
                    if at == len(digests):
                        raise FormatDamaged(f"{self._link.url} sent more values than it was asked for")
                    digest = digests[at]
                    at += 1
                    self.bytes_read += len(view)
                    if check and kind == lpk.KIND_CHUNK and digest_of(view) != digest:
                        raise self._corrupt(digest, "what was sent is something else")
                    yield view, digest, kind
        finally:
            stream.close()  # type: ignore[attr-defined]
        if at < len(digests):
            raise FormatDamaged(f"{self._link.url} sent {at} values of {len(digests)}")

    def _corrupt(self, digest: Digest, why: str) -> ChunkCorrupt:
        return ChunkCorrupt(digest.hex(), "-", why, tier=self._link.url)

    def _joined(self, digest: Digest, data: bytes) -> bytes:
        """The value that the list of pieces `data` stands for. Its own digest is checked, and so those of its pieces need not be."""
        pieces = lpk.parse_chunk_list(data).pieces
        parts: list[memoryview] = []
        hasher = blake3()
        for (piece, length), (part, _, kind) in zip(
            pieces, self._values([name for name, _ in pieces], check=False), strict=True
        ):
            if kind != lpk.KIND_CHUNK or len(part) != length:
                raise self._corrupt(digest, f"its piece {piece.hex()[:16]} is not {length} plain bytes")
            hasher.update(part)
            parts.append(part)
        if hasher.digest() != digest:
            raise self._corrupt(digest, "its pieces do not add up to it")
        return b"".join(parts)

    def get_pieces(self, pieces: Sequence[Digest]) -> Iterator[bytes]:
        """`get_many` of the pieces of a large value, none of which may be in pieces itself."""
        for view, digest, kind in self._values(pieces):
            if kind != lpk.KIND_CHUNK:
                raise self._corrupt(digest, "it is named as a piece of a large value, and is none")
            yield bytes(view)

    def record(self, digest: Digest) -> tuple[int, bytes]:
        """(kind, bytes) of the chunk as it is stored logically: a value, or the list of its pieces."""
        ((view, _, kind),) = self._received([digest], False)
        return kind, bytes(view)

    def find_many(self, digests: Sequence[Digest]) -> RemoteFound:
        """As ChunkFinder."""
        return RemoteFound(self, digests)

    def fetch(self, digests: Sequence[Digest]) -> Iterator[_Value]:
        """Values as they come, in memory that is the request's: to be copied soon."""
        return self._values(digests)


class RemoteFound:
    """FoundChunks of a daemon: looked for with one request, read with one for each WIRE_GET_BYTES, AHEAD_REQUESTS of them under way."""

    def __init__(self, chunks: RemoteChunks, digests: Sequence[Digest]) -> None:
        self._chunks, self._digests = chunks, digests
        facts = chunks.facts(digests) if digests else []
        self.lengths = [None if fact is None else fact.plain for fact in facts]
        self._waiting: list[Future[list[_Value]]] = []
        self._stretches: Iterator[Sequence[Digest]] | None = None

    @property
    def light(self) -> bool:
        """No: threads wait for the network, and need not wait for each other."""
        return False

    def begin(self) -> None:
        """As FoundChunks."""
        self._stretches = self._cut()
        self._more()

    def _cut(self) -> Iterator[Sequence[Digest]]:
        """Distinct digests, WIRE_GET_BYTES at a time."""
        sizes = dict(zip(self._digests, self.lengths, strict=True))
        some: list[Digest] = []
        room = limits.WIRE_GET_BYTES
        for digest, size in sizes.items():
            if some and (room < (size or 0) or len(some) == limits.WIRE_GET_DIGESTS):
                yield some
                some, room = [], limits.WIRE_GET_BYTES
            some.append(digest)
            room -= size or 0
        if some:
            yield some

    def _more(self) -> None:
        assert self._stretches is not None
        while len(self._waiting) < AHEAD_REQUESTS:
            some = next(self._stretches, None)
            if some is None:
                return
            self._waiting.append(self._chunks.submit(functools.partial(self._fetched, some)))

    def _fetched(self, digests: Sequence[Digest]) -> list[_Value]:
        return list(self._chunks.fetch(digests))

    def read_into(self, parts: Sequence[memoryview]) -> None:
        """As FoundChunks."""
        if self._stretches is None:
            self.begin()
        places: dict[Digest, list[memoryview]] = {}
        for digest, part in zip(self._digests, parts, strict=True):
            places.setdefault(digest, []).append(part)
        while self._waiting:
            values = self._waiting.pop(0).result()
            self._more()
            for view, digest, kind in values:
                data: memoryview | bytes = view
                if kind != lpk.KIND_CHUNK:
                    data = self._chunks.get(digest)
                for part in places[digest]:
                    if len(part) != len(data):
                        raise ChunkCorrupt(digest.hex(), "-", f"it has {len(data)} bytes where {len(part)} belong")
                    part[:] = data


def _rows_of(batch: pa.RecordBatch, url: str) -> Iterator[tuple[int, memoryview]]:
    """(kind, bytes) of each row of an answer. Raises FormatDamaged."""
    try:
        if [(field.name, field.type) for field in batch.schema] != _TYPES:
            raise ValueError("another schema")
        batch.validate(full=True)
        kinds, data = batch.column(0), batch.column(1)
        if kinds.null_count or data.null_count:
            raise ValueError("nulls")
    except (ValueError, pa.ArrowException) as error:
        raise FormatDamaged(f"{url} sent values that cannot be read: {str(error)[:200]}") from None
    _, offsets, values = data.buffers()
    view = memoryview(values).cast("B").toreadonly() if values is not None else memoryview(b"")
    ends = np.frombuffer(offsets, np.int64)[data.offset : data.offset + len(data) + 1].tolist() if len(data) else [0]
    for at, kind in enumerate(kinds.to_pylist()):
        if kind not in (lpk.KIND_CHUNK, lpk.KIND_CHUNK_LIST):
            raise FormatDamaged(f"{url} sent a value of kind {kind}")
        yield kind, view[ends[at] : ends[at + 1]]


def open_cache(told: Any) -> HotCache | None:
    """The hot cache of the daemon's host, when that is this one and the cache is this user's own; None otherwise."""
    if not isinstance(told, dict) or not isinstance(told.get("path"), str) or not told["path"].startswith("/"):
        return None
    path = told["path"]
    try:
        state = os.stat(os.path.join(path, "table"))
    except (OSError, ValueError):
        return None
    if state.st_uid != os.getuid():
        return None  # a daemon names a folder: only what is a cache of this user's already is opened
    from leptonstore.cache.hot import HotCache

    cache = HotCache(path, on_problem=lambda message: None)
    return cache if cache.usable else None
