"""Reading many chunks at once from a tier where a request costs more than its bytes.

    digests -> index -> records by pack -> tier.read_many (near ones in one request, several requests at a time) -> decode, check

References are read in a second step, in the same way: what lies close together in an object is one request. Anything out of the
ordinary (not published yet, a chunk list, damage, a pack that garbage collection took) is left to reading one by one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from leptonstore import limits
from leptonstore.codec import CODEC_RAW, Encoded
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import ChunkCorrupt, ReferenceBroken
from leptonstore.format import pack as lpk
from leptonstore.format.reference import Reference, parse_reference
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


def get_encoded(store: Store, digests: Sequence[Digest], encoded: bool) -> Iterator[tuple[bytes, Encoded | None]]:
    """`get` of each chunk that has a record of its own, with (encoded) what it is stored as, where it can be copied so."""
    places = store.locate_many(digests)
    for digest, place, record in zip(digests, places, records(store, places), strict=True):
        data, made = None, None
        if record is not None and place is not None:
            try:
                _, data = reader.decode_record(record, place.row, store.opened(place.pack))
                made = _encoded(record, place) if encoded else None
            except ChunkCorrupt:
                data = None  # a short answer is not damage; what follows tells what is
        yield (store.get(digest), None) if data is None else (data, made)


def _encoded(record: Buffer, place: Place) -> Encoded | None:
    row = place.row
    if row.dictionary != lpk.DICTIONARY_NONE:
        return None
    _, payload = lpk.parse_record(record)
    return Encoded(row.codec, bytes(payload), row.raw, row.plane_width)


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

    @property
    def light(self) -> bool:
        """Whether all are stored as they are, in the clear, and here: what a reference leads to is opened first."""
        in_clear = self._store.unlocked is None
        light = in_clear and all(place is None or place.row.codec == CODEC_RAW for place in self._places)
        return light and not any(map(_is_reference, self._places))

    def begin(self) -> None:
        """On a tier that reads many at once, the first requests are under way when this returns."""
        self._records = records(self._store, self._places)
        self._elsewhere = referred(self._store, self._digests, self._places)

    def read_into(self, parts: Sequence[memoryview]) -> None:
        """Each into memory that is exactly as long. Memory besides: twice READ_TOGETHER_BYTES."""
        if self._records is None:
            self.begin()
        assert self._records is not None
        store, opened = self._store, None
        for digest, place, out, data in zip(self._digests, self._places, parts, self._records, strict=True):
            if _is_reference(place):
                value = next(self._elsewhere)
                if value is not None and len(value) == len(out):
                    out[:] = value
                    continue
            elif place is not None and data is not None:
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
    listed = [one for one in wanted if one is not None]
    return store.tier.read_many(listed) if listed else iter(())


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


def referred(store: Store, digests: Sequence[Digest], places: Sequence[Place | None]) -> Iterator[Buffer | None]:
    """What the references among `places` lead to, checked; None where `get` has to tell what is wrong. Requests as in `records`."""
    wanted = [(digest, place) for digest, place in zip(digests, places, strict=True) if _is_reference(place)]
    if not wanted:
        return iter(())
    batches = _stretches(wanted)
    waiting = deque(_referred(store, some) for some in itertools.islice(batches, 2))
    return _all_referred(store, batches, waiting)


def _all_referred(
    store: Store,
    batches: Iterator[Sequence[tuple[Digest, Place]]],
    waiting: deque[Iterator[Buffer | None]],
) -> Iterator[Buffer | None]:
    while waiting:
        yield from waiting.popleft()
        for some in itertools.islice(batches, 1):
            waiting.append(_referred(store, some))


def _stretches(wanted: Sequence[tuple[Digest, Place]]) -> Iterator[Sequence[tuple[Digest, Place]]]:
    """References to READ_TOGETHER_BYTES each."""
    first, room = 0, limits.READ_TOGETHER_BYTES
    for at, (_, place) in enumerate(wanted):
        if room <= 0:
            yield wanted[first:at]
            first, room = at, limits.READ_TOGETHER_BYTES
        room -= place.row.plain or 0
    yield wanted[first:]


def _referred(store: Store, wanted: Sequence[tuple[Digest, Place]]) -> Iterator[Buffer | None]:
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
