"""Reading many chunks at once from a tier where a request costs more than its bytes.

    digests -> index -> records by pack -> tier.read_many (near ones in one request, several requests at a time) -> decode, check

References are read in a second step, in the same way: what lies close together in an object is one request. Anything out of the
ordinary (not published yet, a chunk list, damage, a pack that garbage collection took) is left to reading one by one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeGuard

from leptonstore import limits
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import ChunkCorrupt, ReferenceBroken
from leptonstore.format import pack as lpk
from leptonstore.format.reference import Reference, parse_reference
from leptonstore.store import reader
from leptonstore.store.index import Place

if TYPE_CHECKING:
    from leptonstore.store.store import Store


def get_many(store: Store, digests: Sequence[Digest], get: Callable[[Digest], bytes]) -> Iterator[bytes]:
    """`get` (which is the store's, for one chunk) of each, in order. Memory: twice READ_TOGETHER_BYTES. Raises what `get` raises."""
    places = store.locate_many(digests)
    elsewhere = referred(store, digests, places)
    for digest, place, data in zip(digests, places, records(store, places), strict=True):
        if _is_reference(place):
            value = next(elsewhere)
            yield get(digest) if value is None else bytes(value)
            continue
        if place is not None and data is not None:
            try:
                yield reader.decode_record(data, place.row, store.opened(place.pack))[1]
                continue
            except ChunkCorrupt:
                pass  # a short answer is not damage; what follows tells what is
        yield get(digest)


class Found:
    """Chunks that were looked for in the index: FoundChunks of leptonstore/tiers/chunks.py."""

    def __init__(self, store: Store, digests: Sequence[Digest]) -> None:
        self._store, self._digests = store, digests
        self._places = store.locate_many(digests)
        self._records: Iterator[Buffer | None] | None = None
        self._elsewhere: Iterator[Buffer | None] = iter(())

    @property
    def lengths(self) -> list[int | None]:
        """What the index says; None for what is no published chunk of its own."""
        return [None if place is None else place.row.plain for place in self._places]

    def begin(self) -> None:
        """On a tier that reads many at once, the first requests are under way when this returns."""
        self._records = records(self._store, self._places)
        self._elsewhere = referred(self._store, self._digests, self._places)

    def read_into(self, parts: Sequence[memoryview]) -> None:
        """Each into memory that is exactly as long. Memory besides: twice READ_TOGETHER_BYTES."""
        if self._records is None:
            self.begin()
        assert self._records is not None
        store, records = self._store, self._records
        for digest, place, out, data in zip(self._digests, self._places, parts, records, strict=True):
            if _is_reference(place):
                value = next(self._elsewhere)
                if value is not None and len(value) == len(out):
                    out[:] = value
                    continue
            elif place is not None and data is not None:
                try:
                    reader.decode_chunk_into(data, place.row, store.opened(place.pack), out)
                    continue
                except ChunkCorrupt:
                    pass  # a short answer is not damage; what follows tells what is
            store.read_into(digest, out)


def records(store: Store, places: Sequence[Place | None]) -> Iterator[Buffer | None]:
    """The bytes of each record as they are stored, None of one that cannot be had this way.

    The first requests are begun now, and while one batch is used, the next is on its way.
    """
    batches = _batches(places)
    waiting: deque[tuple[Sequence[Place | None], Iterator[Buffer]]] = deque()
    for first, end in itertools.islice(batches, 2):
        waiting.append((places[first:end], _begin(store, places[first:end])))
    return _in_order(store, places, batches, waiting)


def _in_order(
    store: Store,
    places: Sequence[Place | None],
    batches: Iterator[tuple[int, int]],
    waiting: deque[tuple[Sequence[Place | None], Iterator[Buffer]]],
) -> Iterator[Buffer | None]:
    while waiting:
        yield from _finish(*waiting.popleft())
        for first, end in itertools.islice(batches, 1):
            waiting.append((places[first:end], _begin(store, places[first:end])))


def _begin(store: Store, places: Sequence[Place | None]) -> Iterator[Buffer]:
    """Where a tier can, all requests are under way when this returns."""
    rows = [(place.pack, place.row) for place in places if _is_plain(place)]
    if not rows:
        return iter(())
    return store.tier.read_many([(pack, row.offset, row.end - row.offset) for pack, row in rows])


def _finish(places: Sequence[Place | None], records: Iterator[Buffer]) -> Iterator[Buffer | None]:
    for number, place in enumerate(places):
        if not _is_plain(place):
            yield None
            continue
        try:
            data = next(records)
        except OSError:  # a pack is gone: other ways know where else to look
            yield from [None] * (len(places) - number)
            return
        yield data


def referred(store: Store, digests: Sequence[Digest], places: Sequence[Place | None]) -> Iterator[Buffer | None]:
    """What the references among `places` lead to, checked; None where `get` has to tell what is wrong. Requests as in `records`."""
    wanted = [(digest, place) for digest, place in zip(digests, places, strict=True) if _is_reference(place)]
    if not wanted:
        return iter(())
    batches = _batches([place for _, place in wanted])
    waiting: deque[Iterator[Buffer | None]] = deque()
    for first, end in itertools.islice(batches, 2):
        waiting.append(_referred(store, wanted[first:end]))
    return _all_referred(store, wanted, batches, waiting)


def _all_referred(
    store: Store,
    wanted: list[tuple[Digest, Place]],
    batches: Iterator[tuple[int, int]],
    waiting: deque[Iterator[Buffer | None]],
) -> Iterator[Buffer | None]:
    while waiting:
        yield from waiting.popleft()
        for first, end in itertools.islice(batches, 1):
            waiting.append(_referred(store, wanted[first:end]))


def _referred(store: Store, wanted: list[tuple[Digest, Place]]) -> Iterator[Buffer | None]:
    """Of a batch: its records are read, and the requests for what they lead to are under way, when this returns."""
    found: list[Reference | None] = []
    try:
        stored = store.tier.read_many([(at.pack, at.row.offset, at.row.end - at.row.offset) for _, at in wanted])
        for (_, place), data in zip(wanted, stored, strict=True):
            try:
                plain = reader.decode_record(data, place.row, store.opened(place.pack))[1]
                found.append(parse_reference(plain))
            except ChunkCorrupt:
                found.append(None)
    except OSError:  # a pack is gone: other ways know where else to look
        found += [None] * (len(wanted) - len(found))
    listed = [(digest, one) for (digest, _), one in zip(wanted, found, strict=True) if one is not None]
    return _in_turn(found, store.references.read_many(listed))


def _in_turn(found: Sequence[Reference | None], values: Iterator[Buffer | ReferenceBroken]) -> Iterator[Buffer | None]:
    for one in found:
        value = None if one is None else next(values)
        yield None if isinstance(value, ReferenceBroken) else value


def _is_reference(place: Place | None) -> TypeGuard[Place]:
    return place is not None and place.row.kind == lpk.KIND_REFERENCE


def _is_plain(place: Place | None) -> TypeGuard[Place]:
    """Whether it is a chunk with a record of its own. (Those of a group are read one by one: the group is decoded once.)"""
    return place is not None and place.row.kind == lpk.KIND_CHUNK and not place.row.is_member


def _batches(places: Sequence[Place | None]) -> Iterator[tuple[int, int]]:
    """Stretches of `places` of READ_TOGETHER_BYTES each."""
    first = 0
    while first < len(places):
        end, room = first, limits.READ_TOGETHER_BYTES
        while end < len(places) and (end == first or room > 0):
            place = places[end]
            if place is not None:
                room -= (place.row.plain or 0) if _is_reference(place) else place.row.end - place.row.offset
            end += 1
        yield first, end
        first = end
