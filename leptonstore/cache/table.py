"""The table: one mapped file of 64-bit words that all processes of a host read without locks and change under the host's lock.

    0      header      512 words: magic, geometry, budget, next ordinal, open segment, clock, horizon, counters
    512    segments    CACHE_SEGMENTS_MAX x 4 words: ordinal << 2 | state, bytes of the file, bytes given out, 0
    ...    index       buckets x 64 words: 16 fingerprints, 16 places, 16 lengths, 16 clocks of last use

A key's bucket follows from its fingerprint (64 bits of the key's 256). A place is `ordinal << 24 | offset / 64`. Segment `n` has slot
`n mod CACHE_SEGMENTS_MAX`; ordinals are never used again, so that an old place can never mean a new segment; a new table begins at
a random one, so that clients of a table that it replaced cannot mean its files.

Invariants:
- A word is written with one aligned store: it is never seen half-written. Words of a slot may disagree for a moment (or for good, when
  their writer was killed): so the index is a hint, and the record at its place, which carries the key and a check, decides.
- A slot of the index whose segment is not live is free. Evicting a segment is therefore one store, whatever it holds.
- A segment's slot says DEAD before its file is made and until it is gone: whoever is killed meanwhile leaves nothing uncounted.
- After a restart of the machine nothing is added to the segment that was open: its words may be older than its bytes (on NVMe).
- Readers store only the clock of last use, and only count: a lost store costs precision of the policy, never a byte.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from leptonstore import limits

Words: TypeAlias = npt.NDArray[np.uint64]

MAGIC = int.from_bytes(b"LHCACHE1", "little")
FREE, LIVE, DEAD = 0, 1, 2
UNIT_BYTES = 64  # records begin at multiples of it

# Words of the header.
_MAGIC, _SEGMENT_BYTES, _BUCKETS = 0, 1, 2
BUDGET, ORDINAL, OPEN, CLOCK, HORIZON, EVICTIONS, RANK_DUE, PLANS, BOOT = 3, 4, 5, 6, 7, 8, 9, 10, 11
COUNTERS = {
    "hits": 16,
    "misses": 17,
    "puts": 18,
    "put_bytes": 19,
    "refused": 20,
    "evicted_bytes": 21,
    "moved_bytes": 22,
}
_REFUSED, _REFUSED_WORDS = 256, 128  # fingerprints of keys whose values were lately not kept
_HEADER_WORDS = 512
_SEGMENT_WORDS = 4
_INDEX = _HEADER_WORDS + limits.CACHE_SEGMENTS_MAX * _SEGMENT_WORDS

_WAYS = limits.CACHE_BUCKET_SLOTS
_BUCKET_WORDS = 4 * _WAYS
_OFFSET_BITS = 24
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_MASK = (1 << 64) - 1
HORIZON_NONE = 1 << 62
# Odd and random: each word of the key reaches the high bits, which choose the bucket.
_MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)
_KEY = Struct("<4Q")


def fingerprint(key: bytes) -> int:
    """64 bits of a 32-byte key, never 0. Raises struct.error for any other length."""
    a, b, c, d = _KEY.unpack(key)
    return (a * _MIX[0] + b * _MIX[1] + c * _MIX[2] + d * _MIX[3]) & _MASK or 1


def fingerprints(keys: npt.NDArray[np.uint8]) -> Words:
    """`fingerprint` of each row of an array of shape (n, 32)."""
    words = np.ascontiguousarray(keys).view("<u8").astype(np.uint64, copy=False)
    mixed = (words * np.array(_MIX, np.uint64)).sum(axis=1, dtype=np.uint64)
    mixed[mixed == 0] = 1
    return mixed


def _segment_bytes(budget_bytes: int) -> int:
    usual = min(budget_bytes // limits.CACHE_SEGMENT_SHARE, limits.CACHE_SEGMENT_BYTES_USUAL_MAX)
    size = max(usual, 2 * budget_bytes // limits.CACHE_SEGMENTS_MAX, limits.CACHE_SEGMENT_BYTES_MIN)
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _buckets(budget_bytes: int) -> int:
    return max(1, 2 * budget_bytes // limits.CACHE_VALUE_BYTES_AVG // _WAYS)


class Place(NamedTuple):
    """Where a value is said to be: `at` is the number of its index slot."""

    at: int
    ordinal: int
    offset: int


@dataclass(frozen=True)
class Entries:
    """All live slots of the index, as columns."""

    at: npt.NDArray[np.int64]
    fingerprints: Words
    ordinals: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    used: npt.NDArray[np.int64]


class Table:
    """The mapped table. Lookups: any thread, no lock. What says "locked" is called by the holder of the host's lock."""

    def __init__(self, file: int) -> None:
        """Map an open file. Raises ValueError when it is not a table of ours, OSError."""
        size = os.fstat(file).st_size
        if size < _INDEX * 8:
            raise ValueError("too short")
        self._map = mmap.mmap(file, size)
        self.words: Any = memoryview(self._map).cast("Q")
        self.segment_bytes: int = self.words[_SEGMENT_BYTES]
        self.buckets: int = self.words[_BUCKETS]
        self.bytes = size
        self.inode = os.fstat(file).st_ino
        sound = limits.CACHE_SEGMENT_BYTES_MIN <= self.segment_bytes <= limits.CACHE_SEGMENT_BYTES_MAX
        if self.words[_MAGIC] != MAGIC or not sound or (_INDEX + self.buckets * _BUCKET_WORDS) * 8 != size:
            raise ValueError("not a table of this version")
        self._array: Words = np.frombuffer(self._map, np.uint64)

    @classmethod
    def create(cls, path: Path, budget_bytes: int) -> None:
        """Locked. Put a new, empty table at `path`, whole or not at all. Raises OSError."""
        segment, buckets = _segment_bytes(budget_bytes), _buckets(budget_bytes)
        size = (_INDEX + buckets * _BUCKET_WORDS) * 8
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
            header = np.zeros(_HEADER_WORDS, np.uint64)
            header[[_MAGIC, _SEGMENT_BYTES, _BUCKETS, BUDGET, ORDINAL, CLOCK, HORIZON]] = (
                MAGIC, segment, buckets, budget_bytes, 1 + secrets.randbits(38), 1, HORIZON_NONE,
            )  # fmt: skip
            os.pwrite(file, header.tobytes(), 0)
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(file)

    @property
    def evictions(self) -> int:
        """Changes whenever a segment died."""
        count: int = self.words[EVICTIONS]
        return count

    def sound(self) -> bool:
        """Locked. Whether header and segments can be what we wrote: else the device lost something, or somebody wrote there."""
        words, slots = self.words, self._array[_HEADER_WORDS:_INDEX].reshape(-1, _SEGMENT_WORDS)
        budget = limits.CACHE_BUDGET_BYTES_MIN <= words[BUDGET] <= limits.CACHE_BUDGET_BYTES_MAX
        used = np.flatnonzero(slots[:, 0])
        ordinals, states = slots[used, 0] >> np.uint64(2), slots[used, 0] & np.uint64(3)
        fits = (ordinals % np.uint64(limits.CACHE_SEGMENTS_MAX) == used.astype(np.uint64)) & (states <= DEAD)
        small = slots[used, 1] <= limits.CACHE_BUDGET_BYTES_MAX
        return bool(budget and words[ORDINAL] < 1 << 39 and words[CLOCK] < 1 << 62 and (fits & small).all())

    def suits(self, budget_bytes: int) -> bool:
        """Whether the sizes of segments and index are of the order that this budget asks for."""
        factor = limits.CACHE_GEOMETRY_FACTOR
        pairs = ((_segment_bytes(budget_bytes), self.segment_bytes), (_buckets(budget_bytes), self.buckets))
        return all(one <= factor * other and other <= factor * one for one, other in pairs)

    # -- index -----------------------------------------------------------------------------------------------------

    def places(self, key_print: int) -> list[Place]:
        """Where the value of a key may be: mostly none or one."""
        base = self._base(key_print)
        words = self.words
        prints = words[base : base + _WAYS].tolist()
        if key_print not in prints:
            return []
        out = []
        for way, found in enumerate(prints):
            if found == key_print:
                place = words[base + _WAYS + way]
                out.append(Place(base + way, place >> _OFFSET_BITS, (place & _OFFSET_MASK) * UNIT_BYTES))
        return out

    def _base(self, key_print: int) -> int:
        return _INDEX + ((key_print * self.buckets) >> 64) * _BUCKET_WORDS

    def touch(self, place: Place) -> None:
        """The value was used now. A count by several processes at once may lose one."""
        words = self.words
        words[CLOCK] = clock = words[CLOCK] + 1
        words[place.at + 3 * _WAYS] = clock

    def insert(self, key_print: int, ordinal: int, offset: int, length: int) -> None:
        """Locked. Publish a value whose bytes are in place. A full bucket loses its least recently used slot."""
        base, words = self._base(key_print), self.words
        ways = range(base, base + _WAYS)
        at = next((at for at in ways if words[at] == key_print), None)
        if at is None:
            at = next((at for at in ways if not self._slot_live(at)), None)
        if at is None:
            at = min(ways, key=lambda at: words[at + 3 * _WAYS])
        words[at] = 0
        words[at + _WAYS] = ordinal << _OFFSET_BITS | offset // UNIT_BYTES
        words[at + 2 * _WAYS] = length
        words[CLOCK] = clock = words[CLOCK] + 1
        words[at + 3 * _WAYS] = clock
        words[at] = key_print
        if self.was_refused(key_print):
            words[_REFUSED + key_print % _REFUSED_WORDS] = 0

    def refuse(self, key_print: int) -> None:
        """The value of a key is not kept: whoever waits for it need not queue."""
        self.words[_REFUSED + key_print % _REFUSED_WORDS] = key_print

    def was_refused(self, key_print: int) -> bool:
        """Whether the last value that was put for this key was not kept, as far as that is remembered."""
        refused: bool = self.words[_REFUSED + key_print % _REFUSED_WORDS] == key_print
        return refused

    def move(self, at: int, key_print: int, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Locked. The value of a slot was copied from (ordinal, offset) to another."""
        words = self.words
        if words[at] == key_print and words[at + _WAYS] == before[0] << _OFFSET_BITS | before[1] // UNIT_BYTES:
            words[at + _WAYS] = after[0] << _OFFSET_BITS | after[1] // UNIT_BYTES

    def drop(self, place: Place, key_print: int) -> None:
        """Locked. The record there is not what it should be."""
        here = place.ordinal << _OFFSET_BITS | place.offset // UNIT_BYTES
        if self.words[place.at] == key_print and self.words[place.at + _WAYS] == here:
            self.words[place.at] = 0

    def _slot_live(self, at: int) -> bool:
        return self.words[at] != 0 and self.is_live(self.words[at + _WAYS] >> _OFFSET_BITS)

    def entries(self) -> Entries:
        """All values that the index knows, in no order."""
        index = self._array[_INDEX:].reshape(self.buckets, 4, _WAYS)
        bucket, way = np.nonzero(index[:, 0])
        places = index[bucket, 1, way].astype(np.int64)
        ordinals = places >> _OFFSET_BITS
        segments = self._array[_HEADER_WORDS:_INDEX].reshape(-1, _SEGMENT_WORDS)
        states = segments[ordinals % limits.CACHE_SEGMENTS_MAX, 0].astype(np.int64)
        offsets, lengths = (places & _OFFSET_MASK) * UNIT_BYTES, index[bucket, 2, way].astype(np.int64)
        within = (lengths >= 0) & (
            lengths <= segments[ordinals % limits.CACHE_SEGMENTS_MAX, 1].astype(np.int64) - offsets
        )
        live = np.flatnonzero((states == (ordinals << 2 | LIVE)) & within)
        bucket, way = bucket[live], way[live]
        return Entries(
            at=_INDEX + bucket * _BUCKET_WORDS + way,
            fingerprints=index[bucket, 0, way],
            ordinals=ordinals[live],
            offsets=offsets[live],
            lengths=lengths[live],
            used=index[bucket, 3, way].astype(np.int64),
        )

    # -- segments --------------------------------------------------------------------------------------------------

    def is_live(self, ordinal: int) -> bool:
        """Whether a segment may be read."""
        live: bool = self.words[self._slot(ordinal)] == ordinal << 2 | LIVE
        return live

    def _slot(self, ordinal: int) -> int:
        return _HEADER_WORDS + ordinal % limits.CACHE_SEGMENTS_MAX * _SEGMENT_WORDS

    def segments(self) -> Iterator[tuple[int, int, int]]:
        """(ordinal, state, bytes) of all slots in use."""
        slots = self._array[_HEADER_WORDS:_INDEX].reshape(-1, _SEGMENT_WORDS)[:, :2]
        for word, size in slots[slots[:, 0] & np.uint64(3) != FREE].tolist():
            yield word >> 2, word & 3, size

    def begin_segment(self, size: int) -> int | None:
        """Locked. The ordinal of a new segment that is DEAD until `set_state`; None when all slots are taken."""
        words = self.words
        for ordinal in range(words[ORDINAL], words[ORDINAL] + limits.CACHE_SEGMENTS_MAX):
            slot = self._slot(ordinal)
            if words[slot] & 3 == FREE:
                words[ORDINAL] = ordinal + 1
                words[slot + 1], words[slot + 2] = size, 0
                words[slot] = ordinal << 2 | DEAD
                return ordinal
        return None

    def set_state(self, ordinal: int, state: int) -> None:
        """Locked. LIVE when its file is ready, DEAD when it is evicted, FREE when its file is gone."""
        slot = self._slot(ordinal)
        if self.words[slot] >> 2 == ordinal:
            self.words[slot] = ordinal << 2 | state
            if state == DEAD:
                self.words[EVICTIONS] += 1

    def take(self, ordinal: int, size: int) -> int | None:
        """Locked. The offset of `size` bytes that are given out in a live segment; None when it lacks them."""
        slot, words = self._slot(ordinal), self.words
        if words[slot] != ordinal << 2 | LIVE or words[slot + 2] + size > words[slot + 1]:
            return None
        offset: int = words[slot + 2]
        words[slot + 2] = offset + size
        return offset
