"""Whatever stands in a store: every parser gives a value or a LeptonError, in bounded memory, and comes to an end.

The parsers and specimens are those of format_targets.py; tests/property/fuzz_formats.py feeds the same ones to atheris for longer.
"""

from __future__ import annotations

import datetime
import json
import struct
import tracemalloc
import zlib
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from format_targets import (
    ENTRY,
    KEY,
    KEYS,
    PACK,
    PACK_ID,
    RECORDS,
    STORE_ID,
    TARGETS,
    MemoryTier,
    Target,
    pack_of,
    record,
    seal,
    volume_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore import codec, limits
from leptonstore.digest import digest_of
from leptonstore.errors import ChunkCorrupt, FormatDamaged, FormatTooNew, LeptonError
from leptonstore.format import framed, volume
from leptonstore.format import pack as lpk
from leptonstore.format.node import parse_node
from leptonstore.format.page import decode_page
from leptonstore.store import reader
from leptonstore.store.config import StoreConfig, parse_config
from leptonstore.store.log import LogState
from leptonstore.store.opened import OpenedPacks

# A parser may hold a few copies of what it was given and the objects made of it; records also what they announce, twice.
MEMORY_BYTES_MAX = 4 << 20
DECODE_BYTES_MAX = 2 * limits.CHUNK_BYTES_MAX + MEMORY_BYTES_MAX
MANY = settings(
    max_examples=150, deadline=datetime.timedelta(seconds=60), suppress_health_check=[HealthCheck.data_too_large]
)
EXTREMES = st.sampled_from(
    [0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, -1]
)


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """A specimen with a few alterations; its checks are made to fit again, or not."""
    data = bytearray(draw(st.sampled_from(target.specimens)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["flip", "length", "cut", "extend", "repeat", "drop"]))
        if what == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif what == "length":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            value = draw(EXTREMES) & ((1 << 8 * width) - 1)
            data[at : at + width] = value.to_bytes(width, "little")
        elif what == "cut":
            del data[at:]
        elif what == "extend":
            data += draw(st.binary(max_size=70))
        elif what == "repeat":
            end = at + draw(st.integers(0, 200))
            data[at:at] = data[at:end]
        else:
            del data[at : at + draw(st.integers(1, 70))]
    return target.repair(bytes(data)) if draw(st.booleans()) else bytes(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("0" * 64) | EXTREMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one part replaced, taken away, or of another kind."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        out = {**value, key: draw(altered(value[key]))}
        if not draw(st.integers(0, 5)):
            del out[key]
        return out
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(altered(value[at])), *value[at + 1 :] * draw(st.integers(0, 2))]
    return draw(JSON)


DECODERS = [TARGETS[name] for name in ("record", "pack", "footer")]


def survives(target: Target, data: bytes) -> None:
    """Run it: a value or a LeptonError of one line, and no more memory than is allowed."""
    tracemalloc.start()
    try:
        target.run(data)
    except LeptonError as error:
        assert str(error) and "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < (DECODE_BYTES_MAX if target in DECODERS else MEMORY_BYTES_MAX)


@pytest.mark.parametrize("name", TARGETS)
def test_specimens_are_valid_and_their_checks_are_repaired(name: str) -> None:
    """Else the tests below would only ever see the first refusal."""
    target = TARGETS[name]
    for specimen in target.specimens:
        target.run(target.repair(specimen))


@pytest.mark.parametrize("name", TARGETS)
def test_any_alteration_is_refused_or_harmless(name: str) -> None:
    target = TARGETS[name]

    @MANY
    @given(st.one_of(damaged(target), st.binary(max_size=200)))
    def check(data: bytes) -> None:
        survives(target, data)

    check()


DOCUMENTS = ["commit", "schema", "config", "log entry", "snapshot", "key", "entry in a seal"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_any_json_in_a_document_is_refused_or_harmless(name: str) -> None:
    """The body is changed as JSON, and framed (or sealed) again: everything beyond the checks is reached."""
    target = TARGETS[name]
    head, _, body = target.specimens[-1].rpartition(b"\n")
    value = json.loads(body)

    @MANY
    @given(altered(value))
    def check(changed: Any) -> None:
        text = json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        data = text.encode("utf-8", "surrogatepass")
        survives(target, target.repair(head + b"\n" * bool(head) + data))

    check()


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"salvage", "page", "footer", "volume"}))
def test_every_truncation_and_every_tail_is_refused(name: str) -> None:
    """Pages are read as one type each in test_format.py; a footer of fewer rows is one; salvage takes what is left; a volume has
    each of its sectors twice."""
    target = TARGETS[name]
    for specimen in {target.repair(specimen) for specimen in target.specimens}:
        for length in range(0, len(specimen), max(1, len(specimen) // 200)):
            with pytest.raises(LeptonError):
                target.run(specimen[:length])
        if name != "header":  # which is read as 128 bytes
            for tail in (b"\0", b" x", specimen):
                with pytest.raises(LeptonError):
                    target.run(specimen + tail)


# -- what a newer version wrote --------------------------------------------------------------------------------------


def test_unknown_required_features_and_versions_are_named() -> None:
    new_pack = bytearray(PACK[:128])
    struct.pack_into("<I", new_pack, 8, 1 << 31)
    with pytest.raises(FormatTooNew, match="0x80000000"):
        TARGETS["header"].run(TARGETS["header"].repair(bytes(new_pack)))
    new_pack[4] = 9
    with pytest.raises(FormatTooNew, match=r"9\.0"):
        TARGETS["header"].run(TARGETS["header"].repair(bytes(new_pack)))
    for name in ("config", "log entry", "snapshot", "key"):
        data = TARGETS[name].specimens[0]
        with pytest.raises(FormatTooNew, match="0x80000000"):
            TARGETS[name].run(data.replace(b" 00000000 ", b" 80000000 ", 1))
        with pytest.raises(FormatTooNew, match=r"2\.0"):
            TARGETS[name].run(data.replace(b" 1.0 ", b" 2.0 ", 1))
    with pytest.raises(FormatTooNew, match="'time-travel'"):
        TARGETS["log entry"].run(framed.encode("log", {**ENTRY, "requires": ["time-travel"]}))
    for kind, number in ((9, lpk.CODEC_RAW), (lpk.KIND_CHUNK, 3)):
        with pytest.raises(FormatTooNew, match=f"kind {kind} and codec {number}"):
            TARGETS["trailer"].run(pack_of([record(kind, bytes(32), codec.Encoded(number, b"abc", 3))]))


def test_a_sealed_document_is_not_taken_in_the_clear_nor_the_reverse() -> None:
    clear = framed.encode("log", ENTRY)
    with pytest.raises(FormatDamaged, match="not sealed"):
        LogState().apply(clear, "entry", KEYS.documents)
    with pytest.raises(FormatDamaged, match="is sealed"):
        LogState().apply(seal(clear), "entry")


# -- lengths that lie, and bombs -------------------------------------------------------------------------------------


def _traced(work: Any) -> int:
    """Peak memory of something that must be refused."""
    tracemalloc.start()
    try:
        with pytest.raises(FormatDamaged):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_costs_no_more_than_the_record_announces() -> None:
    """64 MiB of zeros in a few KB: refused before it is unpacked, whatever header and frame say."""
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(4 * limits.CHUNK_BYTES_MAX))
    assert len(bomb) < 16 << 10
    for raw in (10, 4 * limits.CHUNK_BYTES_MAX, (1 << 63) - 1):
        assert _traced(lambda raw=raw: codec.decode(lpk.CODEC_ZSTD, bomb, raw)) < 1 << 20
    silent = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(bytes(4 * limits.CHUNK_BYTES_MAX))
    assert _traced(lambda: codec.decode(lpk.CODEC_ZSTD, silent, 1_000)) < 1 << 20
    # a frame that announces little and holds much: its second frame, or more blocks than it says
    small = zstandard.ZstdCompressor(level=3).compress(bytes(1_000))
    assert _traced(lambda: codec.decode(lpk.CODEC_ZSTD, small + bomb, 1_000)) < 1 << 20
    lying = bytearray(bomb)
    assert lying[4] >> 6 == 2, "the content size of this frame has four bytes"
    struct.pack_into("<I", lying, 5 if lying[4] & 0x20 else 6, 1_000)
    assert zstandard.frame_content_size(bytes(lying)) == 1_000
    assert _traced(lambda: codec.decode(lpk.CODEC_ZSTD, bytes(lying), 1_000)) < 1 << 20


def test_footers_that_announce_too_much_are_refused_before_they_are_read() -> None:
    for records in (limits.PACK_RECORDS_MAX + 1, (1 << 64) - 1, 1 << 32):
        trailer = bytearray(PACK[-lpk.TRAILER_BYTES :])
        struct.pack_into("<QQQ", trailer, 8, records, 128, records * 64 % (1 << 64))
        with pytest.raises(FormatDamaged):
            lpk.parse_trailer(bytes(trailer), len(PACK))


def test_a_footer_cannot_place_a_record_outside_its_pack() -> None:
    row = lpk.FooterRow(bytes(32), 128, 3, 3, 1, 0, 0, 0, lpk.DICTIONARY_NONE)
    for bad in (
        row._replace(offset=0),
        row._replace(offset=(1 << 64) - 1),
        row._replace(stored=(1 << 64) - 1),
        row._replace(raw=limits.CHUNK_BYTES_MAX + 1),
    ):
        with pytest.raises(FormatDamaged):
            lpk.check_row(bad, 128 + 64 + 3)


def test_salvage_of_a_pack_full_of_false_records_comes_to_an_end() -> None:
    """A header every 64 bytes, each of which claims all that follows: a CRC for each would take minutes."""
    size = 4 << 20
    out = bytearray()
    for at in range(0, size, 64):
        stored = size - at - 64
        head = lpk.RecordHeader(1, 0, 0, 0, lpk.DICTIONARY_NONE, stored, min(stored, limits.CHUNK_BYTES_MAX), bytes(32))
        out += lpk.head_of_record(head) + b"\0\0\0\0"
    start = datetime.datetime.now()
    assert not list(lpk.salvage(bytes(out)))
    assert (datetime.datetime.now() - start).total_seconds() < 5
    assert len(list(lpk.salvage(PACK + out))) == len(RECORDS), "what comes before is still found"


def test_a_tree_of_nothing_cannot_be_endless() -> None:
    """Nodes without rows would let a few small nodes stand for more children than can be walked."""
    head = struct.pack("<4sBBHQQ", b"LND1", 16, 0, 0, 0, 0)
    children = struct.pack("<I", 4_096) + struct.pack("<32sQQ", bytes(32), 0, 0) * 4_096
    with pytest.raises(FormatDamaged):
        parse_node(head + children)
    with pytest.raises(FormatDamaged):
        parse_node(struct.pack("<4sBBHQQ", b"LND1", 0, 0, 0, 0, 0))


def test_a_small_page_cannot_announce_a_huge_array() -> None:
    """Types without bytes of their own (an empty struct, lists of it) have nothing that a length could be checked against."""
    nothing = pa.struct([])
    deep = pa.list_(pa.list_(nothing, (1 << 31) - 1), (1 << 31) - 1)
    for rows in (1 << 20, 1 << 31, (1 << 64) - 1):
        for buffers, kind in ((1, nothing), (3, deep), (2, pa.list_(nothing, 1 << 30))):
            page = struct.pack("<4sIQII", b"LPG1", 0, rows, buffers, 0) + bytes(8 * buffers)
            page += bytes(-len(page) % 64)
            with pytest.raises(FormatDamaged):
                decode_page(page, kind)


def test_infinite_and_huge_numbers_in_documents_are_refused() -> None:
    body = framed.canonical_json({**ENTRY, "time_ns": 12345})
    for number in (b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 5_000):
        data = framed.frame("log", body.replace(b"12345", number))
        with pytest.raises(FormatDamaged):
            LogState().apply(data, "entry")
    with pytest.raises(FormatDamaged):
        framed.parse_json(b"[" * 100_000, "deep")


@pytest.mark.parametrize("name", ["../../../../home", "", "AB" * 16, "ab" * 15 + "/a", None, 7, ["ab" * 16]])
def test_what_becomes_a_path_is_hexadecimal(name: Any) -> None:
    """Pack ids stand in paths that gc deletes: an entry cannot name anything outside packs/."""
    for key in ("packs_removed", "fence", "rescue", "forgotten"):
        with pytest.raises(FormatDamaged, match="hex digits"):
            LogState().apply(framed.encode("log", {**ENTRY, key: [name]}), "entry")
    with pytest.raises(FormatDamaged, match="hex digits"):
        packs = [{"id": name, "bytes": 1, "content": 1}]
        LogState().apply(framed.encode("log", {**ENTRY, "packs_added": packs}), "entry")
    if name is not None:
        with pytest.raises(FormatDamaged, match="hex digits"):
            refs = [{"name": "dataset/a/main", "old": None, "new": name, "metrics": {}}]
            LogState().apply(framed.encode("log", {**ENTRY, "refs": refs}), "entry")


def test_a_wrong_digest_is_told_from_a_wrong_crc() -> None:
    """CRC first: it is what a flipped bit breaks; then the digest, which nobody can make fit."""
    data = bytearray(RECORDS[2])
    data[-1] ^= 1
    with pytest.raises(FormatDamaged, match="CRC"):
        lpk.parse_record(bytes(data))
    with pytest.raises(LeptonError, match="do not match its digest"):
        _read_alone(TARGETS["record"].repair(bytes(data)))


def _read_alone(data: bytes) -> None:
    tier = MemoryTier(pack_of([data]))
    (row,) = reader.read_footer(tier, PACK_ID.hex(), STORE_ID)
    reader.read_record(tier, row, OpenedPacks(tier, STORE_ID).get(PACK_ID.hex()))


def test_specimens_carry_what_they_should() -> None:
    """The pack of the tests has every kind and codec; the key names itself; the CRC is where the document says."""
    heads = [lpk.parse_record(data)[0] for data in RECORDS]
    assert {head.kind for head in heads} == {1, 2, 3, 4, 5} and {head.codec for head in heads} == {0, 1, 2}
    assert any(head.dictionary != lpk.DICTIONARY_NONE and head.kind == lpk.KIND_CHUNK for head in heads)
    assert zlib.crc32(RECORDS[0][:60], zlib.crc32(RECORDS[0][64:])) == struct.unpack_from("<I", RECORDS[0], 60)[0]
    assert KEY.id in KEY.encode().decode() and parse_config(StoreConfig(STORE_ID).encode(), "c").store_id == STORE_ID
    assert digest_of(PACK[:96]) == PACK[96:128]


def test_a_dictionary_that_needs_itself_is_refused() -> None:
    """Found by atheris: the footer calls a record a dictionary, the record says that it is a chunk which needs that dictionary."""
    tier = MemoryTier(PACK)
    rows = reader.read_footer(tier, PACK_ID.hex(), STORE_ID)
    (chunk,) = (row for row in rows if row.kind == lpk.KIND_CHUNK and row.dictionary == 0)
    lie = [
        row._replace(kind=lpk.KIND_DICTIONARY) if row == chunk else row
        for row in rows
        if row.dictionary != 0 or row == chunk
    ]
    end = lpk.parse_trailer(PACK[-lpk.TRAILER_BYTES :], len(PACK)).footer_offset
    tier = MemoryTier(PACK[:end] + lpk.encode_end(PACK[: lpk.HEADER_BYTES], lie, end))
    with pytest.raises(ChunkCorrupt, match="its dictionary 0 is damaged"):
        reader.read_record(tier, chunk, OpenedPacks(tier, STORE_ID).get(PACK_ID.hex()))


def test_the_specimen_of_a_volume_has_its_packs() -> None:
    """Else the tests of alterations would look at nothing but superblocks."""
    sectors = TARGETS["volume"].specimens[0]
    superblock, mirrored = volume.parse_superblocks(volume_of(sectors), "it")
    assert mirrored and superblock.generation == 9
    lengths = []
    for number in range(superblock.headers):
        block = volume_of(sectors)[superblock.header_offset(number) :][: volume.BLOCK_BYTES]
        lengths.append(volume.parse_header(block, number, superblock).length)
    assert lengths == [9_000, 0, 4_096, 0]


def test_a_volume_of_a_newer_version_is_named() -> None:
    target = TARGETS["volume"]
    for offset, value, why in ((4, 2, r"2\.0"), (11, 0x80, "0x80000000")):
        data = bytearray(target.specimens[0])
        data[offset] = data[512 + offset] = value
        with pytest.raises(FormatTooNew, match=why):
            target.run(target.repair(bytes(data)))
