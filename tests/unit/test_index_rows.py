"""Footers as arrays, and the sorting of more rows than fit in memory."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from leptonstore import limits
from leptonstore.digest import digest_of, digest_of_parts
from leptonstore.errors import FormatDamaged, FormatTooNew
from leptonstore.format import pack as lpk
from leptonstore.format.pack import FooterRow
from leptonstore.store import index_rows

HEADER = lpk.PackHeader(lpk.CONTENT_DATA, bytes(16), bytes(16), bytes(32)).encode()


def _row(number: int, **changes: int) -> FooterRow:
    digest = digest_of(str(number).encode())
    row = FooterRow(digest, 128 + 100 * number, 36, 50, lpk.KIND_CHUNK, lpk.CODEC_ZSTD, 0, 0, lpk.DICTIONARY_NONE)
    return row._replace(**changes)


REFERENCE = {"kind": lpk.KIND_REFERENCE, "codec": lpk.CODEC_RAW, "dictionary": 50_000}


def _parts(rows: list[FooterRow]) -> tuple[bytes, bytes, bytes, int]:
    """Header, footer, trailer and length of a pack with these rows, whose records end at 10,000."""
    end = lpk.encode_end(HEADER, rows, 10_000)
    return HEADER, end[: -lpk.TRAILER_BYTES], end[-lpk.TRAILER_BYTES :], 10_000 + len(end)


def _member(start: int, raw: int, unpacked: int) -> dict[str, int]:
    return {"flags": lpk.FLAG_MEMBER, "raw": raw, "dictionary": unpacked << 16 | start}


def test_a_footer_as_an_array_has_the_rows_that_the_parser_tells() -> None:
    rows = [
        _row(1),
        _row(2, kind=lpk.KIND_CHUNK_LIST),
        _row(3, codec=lpk.CODEC_PLANES, plane_width=4),
        _row(4, dictionary=7),
        _row(5, kind=lpk.KIND_DICTIONARY, codec=lpk.CODEC_RAW, dictionary=0),
        _row(6, **_member(100, 50, 150)),
        _row(7, raw=limits.CHUNK_BYTES_MAX),
        _row(8, **REFERENCE),
        _row(9, **{**REFERENCE, "dictionary": limits.CHUNK_BYTES_MAX}),
    ]
    array = index_rows.footer_array(*_parts(rows))
    assert array.tobytes() == index_rows.array_of(lpk.parse_footer(*_parts(rows))).tobytes()
    assert sorted(array["offset"].tolist()) == [row.offset for row in rows]
    assert index_rows._sound(array, 10_000), "without the parser's help"


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 0},
        {"offset": 9_901},
        {"offset": 2**64 - 1},
        {"stored": 10_000},
        {"stored": 2**64 - 200},
        {"offset": 2**63, "stored": 2**63},
        {"raw": limits.CHUNK_BYTES_MAX + 1},
        {"kind": 0},
        {"kind": 4},
        {"codec": 3},
        {"codec": lpk.CODEC_PLANES, "plane_width": 3},
        {"plane_width": 2},
        {"codec": lpk.CODEC_RAW, "dictionary": 1},
        {"codec": lpk.CODEC_RAW, **_member(100, 50, 150)},
        {"kind": lpk.KIND_CHUNK_LIST, **_member(100, 50, 150)},
        _member(100, 51, 150),
        _member(0, 50, limits.GROUP_BYTES_MAX + 1),
        {**REFERENCE, "dictionary": 0},
        {**REFERENCE, "dictionary": lpk.DICTIONARY_NONE},
        {**REFERENCE, "raw": limits.REFERENCE_BYTES_MAX + 1},
        {**REFERENCE, "codec": lpk.CODEC_ZSTD},
        {**REFERENCE, **_member(100, 50, 150)},
        {"kind": 6},
    ],
)
def test_an_array_is_refused_where_the_parser_refuses(changes: dict[str, int]) -> None:
    parts = _parts([_row(1), _row(2, **changes), _row(3)])
    with pytest.raises((FormatDamaged, FormatTooNew)) as expected:
        lpk.parse_footer(*parts)
    with pytest.raises(type(expected.value), match=str(expected.value)):
        index_rows.footer_array(*parts)


def test_a_flipped_byte_of_a_footer_or_a_short_one_is_refused() -> None:
    header, footer, trailer, size = _parts([_row(1), _row(2)])
    for at in range(0, len(footer), 3):
        flipped = bytearray(footer)
        flipped[at] ^= 1
        with pytest.raises(FormatDamaged, match="check"):
            index_rows.footer_array(header, bytes(flipped), trailer, size)
    with pytest.raises(FormatDamaged):
        index_rows.footer_array(header, footer[:-1], trailer, size)
    assert digest_of_parts((header, footer, trailer[:48])) == trailer[48:], "the parts themselves are sound"


def test_dictionaries_and_impossible_lengths_do_not_enter() -> None:
    rows = [_row(1), _row(2, kind=lpk.KIND_DICTIONARY), _row(3, stored=1 << 32), _row(4, raw=1 << 32)]
    entries = index_rows.entries_of(index_rows.array_of(rows), 9)
    assert entries["digest"].tolist() == [rows[0].digest] and entries["ordinal"].tolist() == [9]


def _entries(digests: list[bytes], ordinal: int) -> index_rows.Rows:
    rows = np.zeros(len(digests), index_rows.ENTRY)
    rows["digest"], rows["ordinal"] = digests, ordinal
    return rows


@pytest.mark.parametrize("runs", [0, 1, 2, 13])
def test_runs_merge_to_the_sorted_whole_and_keep_the_order_of_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    monkeypatch.setattr(limits, "INDEX_BATCH_ROWS", 1_000)
    rng = random.Random(runs)
    # Some share their first 8 bytes, some end in zeros, some are in several runs.
    pool = [rng.randbytes(32) for _ in range(4_000)] + [b"same pre" + rng.randbytes(22) + b"\0\0" for _ in range(300)]
    added: list[tuple[bytes, int]] = []
    with index_rows.Runs(tmp_path) as made:
        for run in range(runs):
            digests = rng.sample(pool, 900)
            made.add(_entries(digests, run))
            added += [(digest, run) for digest in digests]
        parts = list(made.merged())
    assert made.rows == len(added)
    merged = [row for part in parts for row in index_rows.KEY_AND_PLACE.iter_unpack(part.tobytes())]
    found = [(digest, index_rows.PLACE.unpack(place)[0]) for digest, place in merged]
    assert found == sorted(added)
    assert all(len(part) <= 1_000 + 256 * runs for part in parts)
    assert list(tmp_path.iterdir()) == [], "the temporary file has no name"
