"""Reading by digest, and the log: find, get, state, history. What the principal may not see is absent.

    get: digests -> stretches of BATCH_BYTES -> index -> read and checked straight into the buffer of a record batch -> the wire

Memory of a `get`: a batch that is filled and one that is sent; where a tier reads many at once, twice READ_TOGETHER_BYTES more.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.cache.chunks import CachedChunks
from leptonstore.daemon import bounds
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.sessions import Session
from leptonstore.daemon.sight import Sight, Visible, sees_ref
from leptonstore.digest import Digest, parse_hex
from leptonstore.errors import ChunkMissing
from leptonstore.format import pack as lpk
from leptonstore.store import Store
from leptonstore.store.index import Place
from leptonstore.store.wire.records import FOUND, KINDS, pack_found

if TYPE_CHECKING:
    from leptonstore.daemon.access import Principal

CHUNK, CHUNK_LIST = KINDS[lpk.KIND_CHUNK], KINDS[lpk.KIND_CHUNK_LIST]
GET_SCHEMA = pa.schema(
    [pa.field("kind", pa.uint8(), nullable=False), pa.field("data", pa.large_binary(), nullable=False)]
)
HISTORY_SCHEMA = pa.schema([pa.field("entry", pa.string(), nullable=False)])

_HISTORY_KEYS = ("sequence", "time_ns", "author", "host", "action", "refs", "forgotten", "epoch", "purged", "replaced")
# What a reader needs of settings. Others name tiers, remotes and folders of references: they are for who administers the store.
_SETTINGS_SHOWN = ("quota_bytes",)


class Reading:
    """Of one daemon. Any thread. `chunks`: the store behind its hot cache, where there is one."""

    def __init__(self, store: Store, sight: Sight, chunks: CachedChunks | None = None) -> None:
        self._store, self._sight = store, sight
        self._chunks = chunks
        self._refreshing = threading.Lock()
        self._asked = itertools.count(1)
        self._last_asked = self._fresh = 0

    # -- the log -------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """See what was published before this call; many at once look once."""
        asked = self._last_asked = next(self._asked)
        with self._refreshing:
            if self._fresh < asked:
                upto = self._last_asked
                self._store.refresh()
                self._fresh = max(upto, asked)

    def state(self, principal: Principal, known: int | None) -> dict[str, Any]:
        """{sequence, state}: the log without its packs, only refs that the principal may see; null when `known` is the newest."""
        self.refresh()
        if known == self._store.state.sequence:
            return {"sequence": known, "state": None}
        body = self._store.moment().to_json()
        for name in ("packs", "placed", "condemned"):
            body.pop(name, None)
        body["refs"] = {name: ref for name, ref in body["refs"].items() if sees_ref(principal, name)}
        if not principal.may(Scope.ADMIN):
            body["settings"] = {
                name: value
                for name, value in body["settings"].items()
                if name in _SETTINGS_SHOWN and principal.may(Scope.READ)
            }
        visible = self._sight(principal)
        if visible is not None:
            body["forgotten"] = _seen(visible, body["forgotten"])
            if "replaced" in body:
                shown = set(_seen(visible, sorted(set(body["replaced"].values()))))
                body["replaced"] = {old: new for old, new in body["replaced"].items() if new in shown}
        return {"sequence": body["sequence"], "state": body}

    def history(self, principal: Principal, since: int) -> Iterator[pa.RecordBatch]:
        """Log entries after `since` that the principal may see, oldest first, each as JSON."""
        self.refresh()
        last = self._store.state.sequence
        whole = principal.may(Scope.READ)
        lines: list[str] = []
        size = 0
        for sequence in range(since + 1, last + 1):
            body = self._store.entry(sequence)
            if body is None:
                continue
            shown = {name: body[name] for name in _HISTORY_KEYS if name in body}
            shown["refs"] = [ref for ref in shown["refs"] if sees_ref(principal, ref["name"])]
            if not whole:
                if not shown["refs"]:
                    continue
                for name in ("forgotten", "replaced"):
                    shown.pop(name, None)
            if principal.may(Scope.ADMIN) and "settings" in body:
                shown["settings"] = body["settings"]
            lines.append(json.dumps(shown, separators=(",", ":")))
            size += len(lines[-1])
            if size >= bounds.BATCH_BYTES:
                yield pa.record_batch([pa.array(lines, pa.string())], schema=HISTORY_SCHEMA)
                lines, size = [], 0
        if lines:
            yield pa.record_batch([pa.array(lines, pa.string())], schema=HISTORY_SCHEMA)

    # -- by digest -----------------------------------------------------------------------------------------------------

    def find(
        self, principal: Principal, digests: Sequence[Digest], session: Session | None = None, rely: bool = False
    ) -> bytes:
        """FOUND of each (store/wire/records.py). What was put in `session` is visible, too; rely: and what is found counts as put there:
        the next publication relies on it, and what may be lost counts as absent."""
        out = np.zeros(len(digests), FOUND)
        store = self._store if session is None or not rely else session.store
        places = self._places(store, digests)
        shown = self._shown(principal, digests, session)
        lists = 0
        for at, (digest, place) in enumerate(zip(digests, places, strict=True)):
            if place is None or not shown[at] or (rely and not store.known(digest)):
                continue
            plain = place.row.plain
            if plain is None:
                lists += 1
                if lists > bounds.FIND_READS_MAX:
                    continue  # as if it were absent: the client asks again, for fewer
                plain = lpk.parse_chunk_list(store.record(digest)[1]).total
            out[at] = pack_found(store.stored_at(place), plain)
        return out.tobytes()

    def _shown(
        self, principal: Principal, digests: Sequence[Digest], session: Session | None
    ) -> Sequence[bool] | np.ndarray[Any, np.dtype[np.bool_]]:
        """Of each, whether the principal may see it."""
        visible = self._sight(principal)
        if visible is None:
            return np.ones(len(digests), np.bool_)
        if session is None:
            return visible(digests)
        own = session.owns(digests)
        rest = [digest for digest, mine in zip(digests, own, strict=True) if not mine]
        seen = iter(visible(rest))
        return [mine or bool(next(seen)) for mine in own]

    def _places(self, store: Store, digests: Sequence[Digest]) -> list[Place | None]:
        """Where each is, as far as new work may rely on it; looked for once more where the log may have news."""
        places = store.locate_many(digests)
        absent = [at for at, place in enumerate(places) if place is None]
        if absent:
            if store is self._store:
                self.refresh()
            else:
                store.refresh()
            again = store.locate_many([digests[at] for at in absent])
            for at, place in zip(absent, again, strict=True):
                places[at] = place
        state = store.state
        for at, place in enumerate(places):
            if place is not None and state.lost(place.pack) and not store.has(digests[at]):
                places[at] = None
        return places

    def get(
        self, principal: Principal, digests: Sequence[Digest], whole: bool, session: Session | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Batches of GET_SCHEMA, in order. whole: values; of one over GET_WHOLE_BYTES_MAX, and without `whole` of every long value, its
        chunk list. Raises ChunkMissing (also for what may not be seen), ChunkCorrupt, TierUnavailable."""
        for digest, seen in zip(digests, self._shown(principal, digests, session), strict=True):
            if not seen:
                raise ChunkMissing(digest.hex())
        return self._get(digests, whole)

    def _get(self, digests: Sequence[Digest], whole: bool) -> Iterator[pa.RecordBatch]:
        places = self._store.locate_many(digests)
        first, size = 0, 0
        for at, place in enumerate(places):
            plain = None if place is None else place.row.plain
            if plain is None:  # in pieces, or only just published: by itself
                if at > first:
                    yield self._batch(digests[first:at])
                yield self._single(digests[at], whole, place is not None)
                first, size = at + 1, 0
                continue
            size += plain
            if size >= bounds.BATCH_BYTES or at + 1 - first >= limits.CACHE_CLAIMS_MAX:
                yield self._batch(digests[first : at + 1])
                first, size = at + 1, 0
        if first < len(digests):
            yield self._batch(digests[first:])

    def _batch(self, digests: Sequence[Digest]) -> pa.RecordBatch:
        """Chunks of known length: each is written once, into its place in the batch."""
        if len(digests) == 1 and self._chunks is not None:
            return get_batch([CHUNK], [self._chunks.get(digests[0])])
        found = (self._chunks or self._store).find_many(digests)
        lengths = found.lengths
        if any(length is None for length in lengths):  # it moved meanwhile
            return get_batch([CHUNK] * len(digests), [self._store.get(digest) for digest in digests])
        offsets = np.zeros(len(digests) + 1, np.int64)
        np.cumsum(np.array(lengths, np.int64), out=offsets[1:])
        buffer = pa.allocate_buffer(int(offsets[-1]))
        view = memoryview(buffer).cast("B")
        ends = offsets.tolist()
        found.read_into([view[start:end] for start, end in itertools.pairwise(ends)])
        kinds = pa.array(np.full(len(digests), CHUNK, np.uint8))
        data = pa.Array.from_buffers(pa.large_binary(), len(digests), [None, pa.py_buffer(offsets), buffer])
        return pa.RecordBatch.from_arrays([kinds, data], schema=GET_SCHEMA)

    def _single(self, digest: Digest, whole: bool, located: bool) -> pa.RecordBatch:
        # The hot cache is that of all stores that this user has on the host: only of what this one has it may answer.
        if whole and located and self._chunks is not None:
            lease = self._chunks.cache.get(self._chunks.key(digest))
            if lease is not None and len(lease.data) <= bounds.GET_WHOLE_BYTES_MAX:
                return get_batch([CHUNK], [lease.data])  # a value in pieces is there as a whole
        kind, data = self._store.record(digest)
        if kind == lpk.KIND_CHUNK_LIST:
            if whole and lpk.parse_chunk_list(data).total <= bounds.GET_WHOLE_BYTES_MAX:
                return get_batch([CHUNK], [(self._chunks or self._store).get(digest)])
            return get_batch([CHUNK_LIST], [data])
        return get_batch([CHUNK], [self._store.get(digest) if kind == lpk.KIND_REFERENCE else data])


def get_batch(kinds: list[int], data: Sequence[bytes | memoryview]) -> pa.RecordBatch:
    """A batch of GET_SCHEMA; of a single value without a copy."""
    if len(data) == 1:
        offsets = pa.py_buffer(np.array([0, len(data[0])], np.int64))
        values = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data[0])])
    else:
        values = pa.array([bytes(one) for one in data], pa.large_binary())
    return pa.RecordBatch.from_arrays([pa.array(kinds, pa.uint8()), values], schema=GET_SCHEMA)


def _seen(visible: Visible, commits: Sequence[str]) -> list[str]:
    return [commit for commit, seen in zip(commits, visible([parse_hex(one) for one in commits]), strict=True) if seen]
