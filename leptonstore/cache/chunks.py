"""CachedChunks: chunks through the hot cache. Wraps a reader of chunks, and is one.

    digest -> key -> hot cache -> view of the value's only copy on this host
                        └ miss -> reader (all that one call misses together; one process of the host) -> hot cache

Keys. In the clear a chunk's key is its digest: the same content is there once, whichever store it came from. What comes from an encrypted
store is kept under another name, which only those can compute who hold the store's key (`name`): else whoever can write a dataset
into any store that this user reads could name a digest, and have the cache give out what it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from leptonstore import limits
from leptonstore.cache import directory
from leptonstore.cache.hot import KEY_BYTES, HotCache, Lease
from leptonstore.digest import Buffer, Digest
from leptonstore.tiers.chunks import ChunkFinder, FoundChunks

Name = Callable[[Digest], bytes]
Digests = npt.NDArray[np.uint8]


class CachedChunks:
    """`reader` behind `cache`: a ChunkFinder. Any thread. The reader's errors pass through; the cache has none.

    name: the key of a digest, for the chunks of an encrypted store; such a cache has to be in RAM (BadInput).
    """

    def __init__(self, reader: ChunkFinder, cache: HotCache, name: Name | None = None) -> None:
        if name is not None and cache.usable:
            directory.prepare(cache.path, ram_only=True)
        self.reader, self.cache = reader, cache
        self._name = name

    def key(self, digest: Digest) -> bytes:
        """Under which name the cache keeps a chunk."""
        return digest if self._name is None else self._name(digest)

    def keys(self, digests: Sequence[Digest]) -> list[bytes]:
        """`key` of each."""
        return list(digests) if self._name is None else [self._name(digest) for digest in digests]

    def key_rows(self, digests: Digests) -> Digests:
        """`key` of each row of an array of shape (n, 32)."""
        if self._name is None:
            return digests
        return np.frombuffer(b"".join(self._name(row.tobytes()) for row in digests), np.uint8).reshape(-1, KEY_BYTES)

    def get(self, digest: Digest) -> memoryview:
        """A view of the cached value, else what the reader gives. Keep a copy, not the view: it pins its segment."""
        return self.cache.get_or_put(self.key(digest), lambda: self.reader.get(digest)).data

    def get_many(self, digests: Sequence[Digest]) -> Iterator[memoryview]:
        """`get` of each, in order. Misses are read together, READ_TOGETHER_BYTES at a time, which are held meanwhile."""
        for first in range(0, len(digests), limits.CACHE_CLAIMS_MAX):
            some = digests[first : first + limits.CACHE_CLAIMS_MAX]
            looked = _Looked(self, some)
            for start, end in looked.batches():
                leases = looked.leases(some[start:end])
                while leases:
                    yield leases.pop().data

    def find_many(self, digests: Sequence[Digest]) -> FoundChunks:
        """Views of what is there, held until they are read, and the reader's `find_many` of the others."""
        return _Found(self, digests)


class _Looked:
    """What the cache has of some chunks, and what it lacks."""

    def __init__(self, chunks: CachedChunks, digests: Sequence[Digest]) -> None:
        self._chunks, self.digests = chunks, digests
        distinct = list(dict.fromkeys(digests))
        self._keys = dict(zip(distinct, chunks.keys(distinct), strict=True))
        self.there: dict[Digest, Lease] = {}
        for digest, key in self._keys.items():
            lease = chunks.cache.get(key)
            if lease is not None:
                self.there[digest] = lease
        self.missing = [digest for digest in distinct if digest not in self.there]

    def fetch(
        self, digests: Sequence[Digest], read: Callable[[Sequence[Digest]], Iterator[Buffer]]
    ) -> dict[Digest, Lease]:
        """What was missing; `read` gives what nobody else is fetching."""
        leases = self._chunks.cache.fetch_many(
            [self._keys[digest] for digest in digests], lambda positions: read([digests[at] for at in positions])
        )
        return dict(zip(digests, leases, strict=True))

    def batches(self) -> Iterator[tuple[int, int]]:
        """Stretches of the chunks whose misses are about READ_TOGETHER_BYTES."""
        found = self._chunks.reader.find_many(self.missing).lengths if self.missing else ()
        # What is stored in pieces is larger than one chunk may be.
        sizes = {
            digest: limits.READ_TOGETHER_BYTES if length is None else length
            for digest, length in zip(self.missing, found, strict=True)
        }
        first, room = 0, limits.READ_TOGETHER_BYTES
        for at, digest in enumerate(self.digests):
            size = sizes.pop(digest, 0)
            if size > room and at > first:
                yield first, at
                first, room = at, limits.READ_TOGETHER_BYTES
            room -= size
        if first < len(self.digests):
            yield first, len(self.digests)

    def leases(self, digests: Sequence[Digest]) -> list[Lease]:
        """Of each, the last first: whoever takes them from the end holds fewer and fewer."""
        wanted = [digest for digest in dict.fromkeys(digests) if digest not in self.there]
        there = self.there | self.fetch(wanted, self._chunks.reader.get_many) if wanted else self.there
        return [there[digest] for digest in reversed(digests)]


class _Found:
    """FoundChunks of a cache and of the reader behind it."""

    def __init__(self, chunks: CachedChunks, digests: Sequence[Digest]) -> None:
        self._looked, self._reader = _Looked(chunks, digests), chunks.reader
        self._rest = self._reader.find_many(self._looked.missing)

    @property
    def lengths(self) -> list[int | None]:
        """Of what is cached, its length; of the others, what the reader knows."""
        known = dict(zip(self._looked.missing, self._rest.lengths, strict=True))
        there = self._looked.there
        return [len(there[digest].data) if digest in there else known[digest] for digest in self._looked.digests]

    @property
    def light(self) -> bool:
        """As far as the reader's part is."""
        return self._rest.light

    def begin(self) -> None:
        """Nothing yet: what another process fetches meanwhile is not fetched here."""

    def read_into(self, parts: Sequence[memoryview]) -> None:
        """What is there is copied and let go; what is missing goes from the reader into its place, and from there into the cache."""
        looked = self._looked
        hits = looked.there
        for digest, part in zip(looked.digests, parts, strict=True):
            if digest in hits:
                part[:] = hits[digest].data
        missed = [(digest, part) for digest, part in zip(looked.digests, parts, strict=True) if digest not in hits]
        hits.clear()
        if not missed:
            return
        places = dict(reversed(missed))  # of a chunk that is asked for several times, the first
        filled: set[int] = set()

        def read(digests: Sequence[Digest]) -> Iterator[memoryview]:
            own = [places[digest] for digest in digests]
            rest = self._rest if len(digests) == len(looked.missing) else self._reader.find_many(digests)
            rest.read_into(own)
            filled.update(id(part) for part in own)
            return iter(own)

        fetched = looked.fetch(looked.missing, read)
        for digest, part in missed:
            if id(part) not in filled:
                part[:] = fetched[digest].data
