"""Strings and bytes: lengths, different and frequent values, least and greatest, in a form that merges.

A value is known by a hash of 64 bits of its bytes; a value that stands elsewhere (a reference) by that of its reference, which has its
digest: none of them is read. Two of 5,000,000 values share a hash with a chance of one in a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset.values import Column
from leptonstore.errors import FormatDamaged
from leptonstore.format.page import REFERENCE
from leptonstore.process.statistics import distinct
from leptonstore.process.statistics.frequent import Frequent
from leptonstore.process.statistics.numbers import NumberSketch
from leptonstore.process.statistics.ranks import runs
from leptonstore.process.statistics.record import Arrays, part_of, take, within
from leptonstore.process.statistics.results import Cardinality, TopValue, TopValues

U64 = NDArray[np.uint64]
_WORDS_MAX = 16  # of 8 bytes, hashed all values together; longer values have their BLAKE3
_MASKS = np.array(
    [(1 << 8 * size) - 1 for size in range(9)], np.uint64
)  # of the bytes of a word that belong to a value
_ENDS_BYTES_MAX = 1_024  # of the least and the greatest that are kept; the start of the least is the least start


@dataclass(frozen=True)
class TextSketch:
    """lengths: of the values, in bytes. frequent: exact as long as its error is 0; registers: of the hashes, when it is not.

    ends: least and greatest value, their first _ENDS_BYTES_MAX bytes; None without values, for bytes, or when some stand elsewhere.
    complete: whether all values are in `ends`.
    """

    lengths: NumberSketch
    frequent: Frequent
    registers: distinct.Registers | None = None
    ends: tuple[bytes, bytes] | None = None
    complete: bool = True

    @classmethod
    def empty(cls) -> TextSketch:
        """Of no values."""
        none = Frequent(np.zeros(0, np.uint64), np.zeros(0, np.int64), texts=())
        return cls(NumberSketch.empty("i"), none)

    @classmethod
    def of(cls, column: Column, ordered: bool) -> TextSketch:
        """Of the non-null values of a column of strings or bytes, as pages keep them. ordered: whether least and greatest are asked for."""
        values, references = column.values, column.references
        if values.null_count:
            valid = values.is_valid()
            references = None if references is None else references[np.asarray(valid.to_numpy(zero_copy_only=False))]
            values = values.drop_null()
        offsets, data = flat_bytes(values)
        lengths = np.diff(offsets)
        hashes = text_hashes(offsets, data)
        if references is not None:
            lengths = Column(values, references).referenced_sizes() + np.where(references, 0, lengths)
        order = np.argsort(hashes)
        different, rows = runs(hashes[order]) if len(order) else (hashes, np.zeros(0, np.int64))
        first = order[np.cumsum(rows) - 1]  # a row of each
        frequent = _with_texts(different, rows, lambda at: _shown(values, references, int(first[at])))
        registers = distinct.registers_of(different) if frequent.error else None
        ends = None
        complete = ordered and (references is None or not references.any())
        if complete and len(values):
            found = pc.min_max(values)
            ends = _end(found["min"]), _end(found["max"])
        return cls(NumberSketch.of(lengths, values_matter=False), frequent, registers, ends, complete)

    @classmethod
    def merged(cls, parts: Sequence[TextSketch]) -> TextSketch:
        """Of all values of all parts, in row order."""
        frequent = Frequent.merged([part.frequent for part in parts])
        registers = None
        if frequent.error:
            registers = np.maximum.reduce([part._registers() for part in parts])
        ends = [part.ends for part in parts if part.ends is not None]
        complete = all(part.complete for part in parts)
        both = (min(one for one, _ in ends), max(one for _, one in ends)) if ends and complete else None
        return cls(NumberSketch.merged([part.lengths for part in parts]), frequent, registers, both, complete)

    def _registers(self) -> distinct.Registers:
        return self.registers if self.registers is not None else distinct.registers_of(self.frequent.keys)

    # -- what it says ------------------------------------------------------------------------------------------------

    def cardinality(self) -> Cardinality:
        """How many different values."""
        if not self.frequent.error:
            return Cardinality(len(self.frequent.keys))
        return Cardinality(round(distinct.estimate(self._registers())), distinct.ERROR)

    def top(self, most: int) -> TopValues:
        """The most frequent."""
        texts = self.frequent.texts or ()
        places = self.frequent.top(most)
        shown = tuple(TopValue(as_text(texts[at]), int(self.frequent.rows[at])) for at in places)
        return TopValues(shown, self.frequent.error)

    # -- kept --------------------------------------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        """To be kept."""
        found: Arrays = {"complete": np.array([self.complete], np.uint8)}
        if self.ends is not None:
            found["least"], found["greatest"] = (np.frombuffer(end, np.uint8) for end in self.ends)
        if self.registers is not None:
            found["registers"] = self.registers
        return found | within("lengths", self.lengths.arrays()) | within("frequent", self.frequent.arrays())

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> TextSketch:
        """What was kept. Raises FormatDamaged."""
        lengths = NumberSketch.from_arrays(part_of("lengths", arrays) or {}, "i")
        frequent = Frequent.from_arrays(part_of("frequent", arrays) or {})
        registers = take(arrays, "registers", "u1", distinct.REGISTERS) if "registers" in arrays else None
        ends = None
        if "least" in arrays:
            ends = take(arrays, "least", "u1").tobytes(), take(arrays, "greatest", "u1").tobytes()
        if frequent.texts is None or (frequent.error and registers is None):
            raise FormatDamaged("sketch of texts lacks a part")
        if registers is not None and int(registers.max()) > distinct.RANK_MAX:
            raise FormatDamaged("sketch of distinct values has a rank that there is not")
        return cls(lengths, frequent, registers, ends, bool(take(arrays, "complete", "u1", 1)[0]))


def _with_texts(keys: U64, rows: NDArray[np.int64], text: Any) -> Frequent:
    """The frequent ones with their texts, as many as STATISTICS_TEXTS_BYTES_MAX hold."""
    found = Frequent.of(keys, rows)
    places = np.searchsorted(keys, found.keys).tolist()
    texts = tuple(text(at) for at in places)
    if sum(map(len, texts)) <= limits.STATISTICS_TEXTS_BYTES_MAX:
        return Frequent(found.keys, found.rows, found.error, texts)
    fitting = limits.STATISTICS_TEXTS_BYTES_MAX // (limits.STATISTICS_TEXT_BYTES_MAX + 4)
    found = Frequent.of(keys, rows, fitting)
    places = np.searchsorted(keys, found.keys).tolist()
    return Frequent(found.keys, found.rows, found.error, tuple(text(at) for at in places))


def _shown(values: pa.Array, references: NDArray[np.bool_] | None, at: int) -> bytes:
    """The text of one value, at most STATISTICS_TEXT_BYTES_MAX bytes (cut: … at its end)."""
    data = bytes(values[at].as_buffer())
    if references is not None and references[at]:
        digest, size = REFERENCE.unpack(data)
        return f"{size:,} bytes, {digest.hex()[:16]}".encode()
    return cut(data)


def cut(data: bytes) -> bytes:
    """At most STATISTICS_TEXT_BYTES_MAX bytes of it, whole characters, with … where something is left out."""
    if len(data) <= limits.STATISTICS_TEXT_BYTES_MAX:
        return data
    mark = "…".encode()
    kept = data[: limits.STATISTICS_TEXT_BYTES_MAX - len(mark)]
    return kept.decode("utf-8", "ignore").encode() + mark if _is_text(data) else kept + mark


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def as_text(data: bytes) -> str:
    """For people: text, or what is no text in hexadecimal digits."""
    return data.decode() if _is_text(data) else data.hex()


def _end(value: pa.Scalar) -> bytes:
    return bytes(value.as_buffer())[:_ENDS_BYTES_MAX]


def flat_bytes(values: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(n + 1 borders, the bytes that they are borders of) of an array of strings or bytes without nulls."""
    if not len(values):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    wide = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    _, raw, data = values.buffers()
    dtype = np.dtype(np.int64 if wide else np.int32)
    offsets = np.frombuffer(raw, dtype, len(values) + 1, values.offset * dtype.itemsize).astype(np.int64)
    flat = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return offsets, flat


def text_hashes(offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> U64:
    """A hash of each value: of its length, and of its bytes eight by eight; all values together, one word after another."""
    first, stop = int(offsets[0]), int(offsets[-1])
    lengths = np.diff(offsets)
    hashes = distinct.mixed(lengths.astype(np.uint64))
    # Words are read where they stand, which is not where words are aligned; eight zeros are there to be read over the end.
    padded = np.concatenate((data[first:stop], np.zeros(8, np.uint8)))
    words = np.ndarray((len(padded) - 7,), "<u8", padded.data, 0, (1,))
    starts = offsets[:-1] - first
    long = lengths > 8 * _WORDS_MAX
    if long.any():
        view = padded.data
        for row in np.flatnonzero(long).tolist():
            digest = blake3(view[int(starts[row]) : int(starts[row] + lengths[row])]).digest(length=8)
            hashes[row] = int.from_bytes(digest, "little")
    rows = np.flatnonzero((lengths > 0) & ~long)
    at, left, some = starts[rows], lengths[rows], hashes[rows]
    while len(rows):
        word = words[at]
        last = left <= 8
        if last.any():
            word &= _MASKS[np.minimum(left, 8)]
        some = distinct.mixed(some ^ word)
        if last.any():
            hashes[rows[last]] = some[last]
            more = ~last
            rows, at, left, some = rows[more], at[more], left[more], some[more]
        at = at + 8
        left = left - 8
    return hashes
