"""LPM1: a file of outcomes of one chain of operations, which memo.py maps into memory.

    0 magic "LPM1" | 4 rows u32 | 8 sections u32 | 12 zero u32 | 16 bytes of the file u64
    24 for each section: offset u64, length u64, BLAKE3 of its bytes 32 | BLAKE3 of all that stands before 32
    sections, each at a multiple of 64, with zeros between                                             (all little-endian)

    section 0    a key of 32 bytes for each row              section 1    fates, i16 for each row (outcomes.py)
    section 2    `said`, an LPG1 page (format/page.py)        section 3…   columns, LPG1 pages of the rows that went on; empty: as it was

It may be damaged, cut short or somebody else's: the head is checked when it is opened, a section when it is first read, and a page is
parsed as pages of a store are. What does not pass is not there.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.digest import DIGEST_BYTES, Buffer, digest_of
from leptonstore.errors import FormatDamaged
from leptonstore.format.page import decode_page, encode_page
from leptonstore.process.outcomes import Outcomes

_MAGIC = b"LPM1"
_HEAD = struct.Struct("<4sIIIQ")
_SECTION = struct.Struct("<QQ32s")
_ALIGN = 64
_FIXED_SECTIONS = 3


def write_block(file: BinaryIO, keys: bytes, outcomes: Outcomes) -> int:
    """Write a block; returns its bytes. keys: 32 bytes a row. Raises OSError."""
    pages = [
        encode_page(outcomes.said),
        *(b"" if column is None else encode_page(column) for column in outcomes.columns),
    ]
    sections: list[Buffer] = [keys, outcomes.fates.astype("<i2").tobytes(), *pages]
    at = _HEAD.size + len(sections) * _SECTION.size + DIGEST_BYTES
    table = []
    for section in sections:
        at += -at % _ALIGN
        table.append(_SECTION.pack(at, len(section), digest_of(section)))
        at += len(section)
    head = _HEAD.pack(_MAGIC, len(outcomes), len(sections), 0, at) + b"".join(table)
    head += digest_of(head)
    file.write(head)
    at = len(head)
    for section in sections:
        file.write(bytes(-at % _ALIGN))
        file.write(section)
        at += -at % _ALIGN + len(section)
    file.flush()
    return at


class Block:
    """A block that is mapped. Any thread. Raises FormatDamaged when it is not what was written; opening it raises OSError, too."""

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.bytes = os.fstat(file).st_size
            if self.bytes < _HEAD.size:
                raise FormatDamaged("a memo block is truncated")
            self._view = memoryview(mmap.mmap(file, self.bytes, prot=mmap.PROT_READ))
        finally:
            os.close(file)
        magic, self.rows, count, _, size = _HEAD.unpack(self._view[: _HEAD.size])
        end = _HEAD.size + count * _SECTION.size
        if magic != _MAGIC or size != self.bytes or end + DIGEST_BYTES > size or count < _FIXED_SECTIONS:
            raise FormatDamaged("a memo block has another magic or length")
        if digest_of(self._view[:end]) != self._view[end : end + DIGEST_BYTES]:
            raise FormatDamaged("the head of a memo block is damaged")
        if self.rows > limits.ROW_GROUP_ROWS_MAX:
            raise FormatDamaged("a memo block has too many rows")
        self._sections = list(_SECTION.iter_unpack(self._view[_HEAD.size : end]))
        self._checked: set[int] = set()
        self._columns: dict[int, tuple[pa.DataType, pa.Array | None]] = {}

    def _section(self, number: int) -> memoryview:
        offset, length, digest = self._sections[number]
        if offset + length > self.bytes:
            raise FormatDamaged("a memo block places a section outside itself")
        data = self._view[offset : offset + length]
        if number not in self._checked:
            if digest_of(data) != digest:
                raise FormatDamaged(f"section {number} of a memo block is damaged")
            self._checked.add(number)
        return data

    def row_keys(self) -> NDArray[Any]:
        """The key of each row, shape (rows, 32)."""
        data = self._section(0)
        if len(data) != self.rows * DIGEST_BYTES:
            raise FormatDamaged("a memo block has too few keys")
        return np.frombuffer(data, np.uint8).reshape(self.rows, DIGEST_BYTES)

    def outcomes(self, types: Sequence[pa.DataType | None]) -> Outcomes:
        """What became of its rows, over the mapped file. types: of the columns; None: it is not wanted, and not read."""
        fates = self._section(1)
        if len(self._sections) != _FIXED_SECTIONS + len(types) or len(fates) != 2 * self.rows:
            raise FormatDamaged("a memo block has other columns")
        known = np.frombuffer(fates, "<i2")
        kept = int((known == 0).sum())
        said = self._page(2, pa.string(), self.rows)
        assert said is not None
        columns = (None if one is None else self._page(_FIXED_SECTIONS + at, one, kept) for at, one in enumerate(types))
        return Outcomes(known, said, tuple(columns))

    def _page(self, number: int, data_type: pa.DataType, rows: int) -> pa.Array | None:
        known = self._columns.get(number)
        if known is None or known[0] != data_type:
            data = self._section(number)
            array = decode_page(data, data_type).values if len(data) or number < _FIXED_SECTIONS else None
            if array is not None and len(array) != rows:
                raise FormatDamaged("a memo block has columns of another length")
            known = self._columns[number] = data_type, array
        return known[1]
