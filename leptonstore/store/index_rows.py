"""Rows of the index as arrays: from footers to places, sorted, in bounded memory.

A footer's rows and an index's places are fixed-width, so a pack is one array and nothing is done row by row. More rows than fit
one batch become sorted runs in a temporary file, which are merged part by part: every part holds all rows of a range of digests.

    footer row (64 bytes, as unpacked)     digest (32) | offset, stored, raw u64 | kind, codec, flags, plane width u8 | dictionary u32
    entry (60 bytes)                       digest (32) | place (28): pack's ordinal u32 | offset u64 | stored, raw u32 |
                                           kind, codec, flags, plane width u8 | dictionary u32
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from leptonstore import limits
from leptonstore.digest import DIGEST_BYTES, digest_of_parts
from leptonstore.format import pack as lpk
from leptonstore.format.pack import FooterRow

Rows: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"  # of FOOTER or of ENTRY

_SHORT = [("kind", "u1"), ("codec", "u1"), ("flags", "u1"), ("plane_width", "u1"), ("dictionary", "<u4")]
FOOTER = np.dtype([("digest", "S32"), ("offset", "<u8"), ("stored", "<u8"), ("raw", "<u8"), *_SHORT])
ENTRY = np.dtype([("digest", "S32"), ("ordinal", "<u4"), ("offset", "<u8"), ("stored", "<u4"), ("raw", "<u4"), *_SHORT])
PLACE = struct.Struct("<IQIIBBBBI")
KEY_AND_PLACE = struct.Struct(f"{DIGEST_BYTES}s{PLACE.size}s")
PREFIX_BYTES = 8  # of a digest: enough to find it, few enough to keep for each row once more
_ROW = struct.Struct("<32sQQQBBBBI")
_SAMPLE_EVERY = 256  # rows of a run, of which one is remembered to cut parts of equal size
assert FOOTER.itemsize == _ROW.size == lpk.FOOTER_ROW_BYTES and ENTRY.itemsize == KEY_AND_PLACE.size


def footer_array(header: bytes, footer: bytes, trailer: bytes, pack_bytes: int) -> Rows:
    """The rows of a footer as one array, checked like `lpk.parse_footer` does. Raises FormatDamaged or FormatTooNew."""
    where = lpk.parse_trailer(trailer, pack_bytes)
    whole = len(footer) == where.footer_bytes
    if whole and digest_of_parts((header, footer, trailer[: -len(where.check)])) == where.check:
        rows: Rows = np.frombuffer(lpk.unpack_footer(footer, where.records), FOOTER)
        if _sound(rows, where.footer_offset):
            return rows
    # Something is wrong. The parser says what, row by row; where it finds nothing, it is right.
    return array_of(lpk.parse_footer(header, footer, trailer, pack_bytes))


def _sound(rows: Rows, records_end: int) -> bool:
    """Whether every row passes `lpk.check_row`. True only then; when in doubt, False."""
    end, offset, stored, kind, codec = records_end, rows["offset"], rows["stored"], rows["kind"], rows["codec"]
    sound = (offset >= lpk.HEADER_BYTES) & (offset <= end) & (stored <= end)  # so that nothing below overflows
    sound &= offset + stored + np.uint64(lpk.RECORD_HEADER_BYTES) <= end
    sound &= rows["raw"] <= limits.CHUNK_BYTES_MAX
    reference = kind == lpk.KIND_REFERENCE
    sound &= (kind >= lpk.KIND_CHUNK) & ((kind <= lpk.KIND_DICTIONARY) | reference) & (codec <= lpk.CODEC_PLANES)
    sound &= (codec == lpk.CODEC_PLANES) == np.isin(rows["plane_width"], lpk.PLANE_WIDTHS)
    member = rows["flags"] & lpk.FLAG_MEMBER != 0
    start, unpacked = rows["dictionary"] & 0xFFFF, rows["dictionary"] >> 16
    inside = (start + rows["raw"] <= unpacked) & (unpacked <= limits.GROUP_BYTES_MAX)
    sound &= ~member | (inside & (kind == lpk.KIND_CHUNK) & (codec == lpk.CODEC_ZSTD))
    named = (rows["dictionary"] != lpk.DICTIONARY_NONE) & (kind != lpk.KIND_DICTIONARY) & (codec != lpk.CODEC_ZSTD)
    sound &= member | reference | ~named
    short = (codec == lpk.CODEC_RAW) & (rows["raw"] <= limits.REFERENCE_BYTES_MAX)
    short &= (rows["dictionary"] > 0) & (rows["dictionary"] <= limits.CHUNK_BYTES_MAX)
    return bool((sound & (~reference | short)).all())


def array_of(rows: Iterable[FooterRow] | Rows) -> Rows:
    """Footer rows as an array."""
    if isinstance(rows, np.ndarray):
        return rows
    return np.frombuffer(b"".join([_ROW.pack(*row) for row in rows]), FOOTER)


def entries_of(rows: Rows, ordinal: int) -> Rows:
    """What the index keeps of a pack's footer rows. Dictionaries are no chunks; what cannot be a record of ours is left out."""
    kept = (rows["kind"] != lpk.KIND_DICTIONARY) & (rows["stored"] < 1 << 32) & (rows["raw"] < 1 << 32)
    rows = rows if kept.all() else rows[kept]
    entries = np.empty(len(rows), ENTRY)
    entries["ordinal"] = ordinal
    for name in FOOTER.names or ():
        entries[name] = rows[name]
    return entries


def prefixes_of(entries: Rows) -> bytes:
    """The first 8 bytes of each digest."""
    return np.ascontiguousarray(entries["digest"]).view("u8").reshape(-1, 4)[:, 0].tobytes()


def sort_entries(entries: Rows) -> Rows:
    """Sorted by digest; rows of the same digest keep their order."""
    words = np.ascontiguousarray(entries["digest"]).view(">u8").reshape(-1, 4)
    first = words[:, 0].astype("u8")
    order = np.argsort(first, kind="stable")
    tied = np.flatnonzero(first[order[1:]] == first[order[:-1]])
    if (words[order[tied]] != words[order[tied + 1]]).any():  # not by chance: somebody made digests alike
        order = np.argsort(np.ascontiguousarray(entries["digest"]), kind="stable")
    return entries[order]


def first_of_digest(entries: Rows) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Of sorted entries: which are the first with their digest."""
    words = np.ascontiguousarray(entries["digest"]).view("u8").reshape(-1, 4)
    first = np.ones(len(entries), bool)
    first[1:] = (words[1:] != words[:-1]).any(axis=1)
    return first


class Runs:
    """Sorted batches of entries, and their merge. One thread; use it as a context manager.

    The first batch is kept in memory; when there are more, all go to an unnamed temporary file in `folder`, which is gone
    when the process ends. Memory: a few batches. Parts may be larger than a batch only by rows of equal digest and by 256 per run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: Rows | None = None
        self._file: Any = None
        self._starts = [0]  # in rows; one more than there are runs
        self._samples: list[Rows] = []
        self.rows = 0

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, entries: Rows) -> None:
        """Add a batch, in any order."""
        entries = sort_entries(entries)
        self.rows += len(entries)
        if self._first is None:
            self._first = entries
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed on exit)
            self._append(self._first)
            self._first = entries[:0]
        self._append(entries)

    def _append(self, entries: Rows) -> None:
        self._file.write(entries.tobytes())
        self._starts.append(self._starts[-1] + len(entries))
        self._samples.append(entries["digest"][::_SAMPLE_EVERY].copy())

    def _read(self, start: int, end: int) -> Rows:
        self._file.seek(start * ENTRY.itemsize)
        return np.frombuffer(self._file.read((end - start) * ENTRY.itemsize), ENTRY)

    def merged(self) -> Iterator[Rows]:
        """Every entry, sorted by digest; of equal digests, what was added first comes first."""
        if self._file is None:
            if self._first is not None and len(self._first):
                yield self._first
            return
        self._file.flush()
        step = max(1, limits.INDEX_BATCH_ROWS // _SAMPLE_EVERY)
        samples = np.sort(np.concatenate(self._samples))
        cuts = samples[step::step]
        bounds = []
        for start, end in zip(self._starts, self._starts[1:], strict=False):
            inner = start + np.searchsorted(np.ascontiguousarray(self._read(start, end)["digest"]), cuts)
            bounds.append([start, *inner.tolist(), end])
        for part in range(len(cuts) + 1):
            pieces = [self._read(run[part], run[part + 1]) for run in bounds if run[part] < run[part + 1]]
            if pieces:
                yield sort_entries(np.concatenate(pieces))
