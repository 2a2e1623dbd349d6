"""Reading many chunks at once from a tier where a request costs more than its bytes.

    digests -> index -> records by pack -> tier.read_many (near ones in one request, several requests at a time) -> decode, check

Anything out of the ordinary (not published yet, a chunk list, damage, a pack that garbage collection took) is left to reading one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeGuard

from leptonstore import limits
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import ChunkCorrupt
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.index import Place

if TYPE_CHECKING:
    from leptonstore.store.store import Store


def get_many(store: Store, digests: Sequence[Digest], get: Callable[[Digest], bytes]) -> Iterator[bytes]:
    """`get` (which is the store's, for one chunk) of each, in order. Memory: twice READ_TOGETHER_BYTES. Raises what `get` raises."""
    places = store.locate_many(digests)
    for digest, place, data in zip(digests, places, records(store, places), strict=True):
        if place is not None and data is not None:
            try:
                yield reader.decode_record(data, place.row, store.opened(place.pack))[1]
                continue
            except ChunkCorrupt:
                pass  # a short answer is not damage; what follows tells what is
        yield get(digest)


def read_many_into(
    store: Store, digests: Sequence[Digest], places: Sequence[Place | None], parts: Sequence[memoryview]
) -> None:
    """Each of the chunks into memory that is exactly as long. Memory besides: twice READ_TOGETHER_BYTES."""
    for digest, place, out, data in zip(digests, places, parts, records(store, places), strict=True):
        if place is not None and data is not None:
            try:
                reader.decode_chunk_into(data, place.row, store.opened(place.pack), out)
                continue
            except ChunkCorrupt:
                pass  # a short answer is not damage; what follows tells what is
        store.read_into(digest, out)


def records(store: Store, places: Sequence[Place | None]) -> Iterator[Buffer | None]:
    """The bytes of each record as they are stored, None of one that cannot be had this way.

    While one batch is used, the next is on its way.
    """
    waiting: deque[tuple[Sequence[Place | None], Iterator[Buffer]]] = deque()
    for first, end in _batches(places):
        waiting.append((places[first:end], _begin(store, places[first:end])))
        if len(waiting) > 1:
            yield from _finish(*waiting.popleft())
    while waiting:
        yield from _finish(*waiting.popleft())


def _begin(store: Store, places: Sequence[Place | None]) -> Iterator[Buffer]:
    """Where a tier can, all requests are under way when this returns."""
    rows = [(place.pack, place.row) for place in places if _is_plain(place)]
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
            room -= 0 if place is None else place.row.end - place.row.offset
            end += 1
        yield first, end
        first = end
