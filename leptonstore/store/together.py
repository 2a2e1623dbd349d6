"""Reading many chunks at once from a tier where a request costs more than its bytes.

    digests -> index -> records by pack -> tier.read_many (near ones in one request, several requests at a time) -> decode, check

Anything out of the ordinary (not published yet, a chunk list, damage, a pack that garbage collection took) is left to reading one by one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from leptonstore import limits
from leptonstore.codec import CODEC_RAW
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import ChunkCorrupt
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.index import Place

if TYPE_CHECKING:
    from leptonstore.store.store import Store

Wanted: TypeAlias = (
    tuple[str, int, int] | None
)  # (pack, offset, bytes) of a record, None of one that is read another way


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


class Found:
    """Chunks that were looked for in the index: FoundChunks of leptonstore/tiers/chunks.py."""

    def __init__(self, store: Store, digests: Sequence[Digest]) -> None:
        self._store, self._digests = store, digests
        self._places = store.locate_many(digests)
        self._records: Iterator[Buffer | None] | None = None

    @property
    def lengths(self) -> list[int | None]:
        """What the index says; None for what is no published chunk of its own."""
        return [
            place.row.raw if place is not None and place.row.kind == lpk.KIND_CHUNK else None for place in self._places
        ]

    @property
    def light(self) -> bool:
        """Whether all are stored as they are, in the clear."""
        in_clear = self._store.unlocked is None
        return in_clear and all(place is None or place.row.codec == CODEC_RAW for place in self._places)

    def begin(self) -> None:
        """On a tier that reads many at once, the first requests are under way when this returns."""
        self._records = records(self._store, self._places)

    def read_into(self, parts: Sequence[memoryview]) -> None:
        """Each into memory that is exactly as long. Memory besides: twice READ_TOGETHER_BYTES."""
        if self._records is None:
            self.begin()
        assert self._records is not None
        store, opened = self._store, None
        for digest, place, out, data in zip(self._digests, self._places, parts, self._records, strict=True):
            if place is not None and data is not None:
                if opened is None or opened.id != place.pack:
                    opened = store.opened(place.pack)
                try:
                    reader.decode_chunk_into(data, place.row, opened, out)
                    continue
                except ChunkCorrupt:
                    pass  # a short answer is not damage; what follows tells what is
            store.read_into(digest, out)


def records(store: Store, places: Sequence[Place | None]) -> Iterator[Buffer | None]:
    """The bytes of each record as they are stored, None of one that cannot be had this way.

    The first requests are begun now, and while one batch is used, the next is on its way.
    """
    # A chunk with a record of its own. (Those of a group are read one by one: the group is decoded once.)
    plain = [
        place is not None and place.row.kind == lpk.KIND_CHUNK and not place.row.flags & lpk.FLAG_MEMBER
        for place in places
    ]
    wanted = [
        (place.pack, place.row.offset, place.row.stored + lpk.RECORD_HEADER_BYTES) if is_plain and place else None
        for place, is_plain in zip(places, plain, strict=True)
    ]
    batches = _batches(wanted)
    waiting = deque((some, _begin(store, some)) for some in itertools.islice(batches, 2))
    return _in_order(store, batches, waiting)


def _in_order(
    store: Store, batches: Iterator[Sequence[Wanted]], waiting: deque[tuple[Sequence[Wanted], Iterator[Buffer]]]
) -> Iterator[Buffer | None]:
    while waiting:
        yield from _finish(*waiting.popleft())
        for some in itertools.islice(batches, 1):
            waiting.append((some, _begin(store, some)))


def _begin(store: Store, wanted: Sequence[Wanted]) -> Iterator[Buffer]:
    """Where a tier can, all requests are under way when this returns."""
    return store.tier.read_many([one for one in wanted if one is not None])


def _finish(wanted: Sequence[Wanted], records: Iterator[Buffer]) -> Iterator[Buffer | None]:
    for number, one in enumerate(wanted):
        if one is None:
            yield None
            continue
        try:
            data = next(records)
        except OSError:  # a pack is gone: other ways know where else to look
            yield from [None] * (len(wanted) - number)
            return
        yield data


def _batches(wanted: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
    """Stretches of READ_TOGETHER_BYTES each."""
    first, room = 0, limits.READ_TOGETHER_BYTES
    for at, one in enumerate(wanted):
        if room <= 0:
            yield wanted[first:at]
            first, room = at, limits.READ_TOGETHER_BYTES
        room -= 0 if one is None else one[2]
    if first < len(wanted):
        yield wanted[first:]
