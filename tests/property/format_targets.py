"""Every parser of stored bytes, as a function of bytes, with a valid specimen and a way to make its checks fit again.

Shared by test_format_fuzz.py (hypothesis) and fuzz_formats.py (atheris). A target returns nothing; for any bytes at all
it may raise LeptonError and nothing else. `repair` recomputes lengths and checks after an alteration, so that what comes after the
checks is reached, too: whoever can write into a store can compute them as well.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from leptonstore import codec
from leptonstore.crypto import StoreKeys
from leptonstore.digest import digest_of, digest_of_parts
from leptonstore.errors import LeptonError
from leptonstore.format import framed, volume
from leptonstore.format import pack as lpk
from leptonstore.format.commit import Commit, encode_commit, parse_commit
from leptonstore.format.node import Child, InternalNode, Part, RowGroup, encode_internal, encode_row_group, parse_node
from leptonstore.format.page import decode_page, encode_page
from leptonstore.format.planes import to_planes
from leptonstore.format.reference import Reference, encode_reference, parse_reference
from leptonstore.format.schema import schema_from_json
from leptonstore.store import reader
from leptonstore.store.config import StoreConfig, parse_config
from leptonstore.store.keys import Key, parse_key
from leptonstore.store.log import LogState
from leptonstore.store.opened import OpenedPacks
from leptonstore.tiers.block_scan import VolumeReader

STORE_ID, PACK_ID = bytes(range(16)), bytes(range(16, 32))
TENSOR = pa.fixed_shape_tensor(pa.uint8(), [2, 2])
ARRAYS = [
    pa.array([1, None, 3], pa.int32()),
    pa.array(["a", None, "é", ""]),
    pa.array([b"a", None, b"\xff"], pa.large_binary()),
    pa.array([True, None, False]),
    pa.array([[1, 2], None, [3]], pa.list_(pa.int64())),
    pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int16(), 2)),
    pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
    pa.array([[{}], []], pa.large_list(pa.struct([]))),
    pa.array([None, [[None, None]]], pa.list_(pa.list_(pa.struct([]), 2), 1)),
    pa.ExtensionArray.from_storage(TENSOR, pa.FixedSizeListArray.from_arrays(pa.array(range(8), pa.uint8()), 4)),
]


@dataclass(frozen=True)
class Target:
    """`run` parses bytes; `specimens` are valid; `repair` makes lengths and checks fit."""

    run: Callable[[bytes], None]
    specimens: tuple[bytes, ...]
    repair: Callable[[bytes], bytes] = bytes


def void(value: Any) -> None:
    """Only that it was made counts."""
    del value


# -- packs -------------------------------------------------------------------------------------------------------


class MemoryTier:
    """One pack in memory."""

    url = "memory:"

    def __init__(self, data: bytes) -> None:
        self.data = data

    def pack_bytes(self, pack: str) -> int | None:
        """Its length."""
        return len(self.data)

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """As a file would: short at the end."""
        assert 0 <= length <= len(self.data), "a reader asks for more than the pack has"
        return self.data[offset : offset + length]

    def packs(self) -> Iterator[str]:
        """The one."""
        yield PACK_ID.hex()


def record(kind: int, digest: bytes, encoded: codec.Encoded, ordinal: int = lpk.DICTIONARY_NONE) -> bytes:
    """Header and payload."""
    payload = bytes(encoded.payload)
    head = lpk.RecordHeader(kind, encoded.codec, 0, encoded.plane_width, ordinal, len(payload), encoded.raw, digest)
    return lpk.encode_record(head, zlib.crc32(payload)) + payload


def pack_of(records: list[bytes]) -> bytes:
    """A whole pack."""
    header = lpk.PackHeader(lpk.CONTENT_DATA, STORE_ID, PACK_ID, bytes(32)).encode()
    out, rows = bytearray(header), []
    for data in records:
        head, payload = lpk.parse_record(data)
        fields = head.stored, head.raw, head.kind, head.codec, head.flags, head.plane_width, head.dictionary
        row = lpk.FooterRow(head.digest, len(out), *fields)
        out += data
        if head.kind == lpk.KIND_GROUP:
            plain = codec.decode(head.codec, payload, head.raw)
            places = lpk.parse_group(plain)
            rows += [lpk.member_row(row, digest_of(plain[at : at + size]), at, size) for at, size in places]
        else:
            rows.append(row)
    return bytes(out) + lpk.encode_end(header, rows, len(out))


REFERENCE = encode_reference(Reference(1, "train/00001.jpg", 512, 19, 10_240, "mtime_ns 1"))


def _records() -> list[bytes]:
    """One of each kind and codec."""
    texts = [
        json.dumps({"image": f"{n:05}.jpg", "label": n % 7, "camera": f"front-{n % 3}"}).encode() for n in range(400)
    ]
    dictionary = codec.Dictionary(zstandard.train_dictionary(2_000, texts).as_bytes())
    floats = np.cumsum(np.ones(200, np.float32) / 7).tobytes()
    pieces = [(digest_of(texts[0]), len(texts[0])), (digest_of(texts[1]), len(texts[1]))]
    listed = lpk.encode_chunk_list(pieces)
    group = lpk.encode_group([*texts[2:9], b""])
    return [
        record(lpk.KIND_DICTIONARY, dictionary.digest, codec.encode(dictionary.data), 0),
        record(lpk.KIND_CHUNK, digest_of(texts[0]), codec.encode(texts[0], dictionary=dictionary), 0),
        record(lpk.KIND_CHUNK, digest_of(texts[1]), codec.Encoded(lpk.CODEC_RAW, texts[1], len(texts[1]))),
        record(lpk.KIND_CHUNK, digest_of(b"ab" * 99), codec.encode(b"ab" * 99)),
        record(lpk.KIND_CHUNK, digest_of(floats), codec.encode(floats, plane_width=4)),
        record(lpk.KIND_CHUNK_LIST, digest_of(texts[0] + texts[1]), codec.encode(listed)),
        record(lpk.KIND_GROUP, digest_of(group), codec.encode(group)),
        record(
            lpk.KIND_REFERENCE,
            digest_of(b"it stands elsewhere"),
            codec.Encoded(lpk.CODEC_RAW, REFERENCE, len(REFERENCE)),
            19,
        ),
    ]


RECORDS = _records()
PACK = pack_of(RECORDS)
_HEAD, _PAYLOAD = lpk.parse_record(RECORDS[0])
TRAILER = struct.Struct("<4sBBHQQQQQ")
_WHERE = lpk.parse_trailer(PACK[-lpk.TRAILER_BYTES :], len(PACK))
PACK_RECORDS = PACK[: _WHERE.footer_offset]  # header and records
ROWS = lpk.unpack_footer(PACK[_WHERE.footer_offset : -lpk.TRAILER_BYTES], _WHERE.records)
DICTIONARY = codec.Dictionary(codec.decode(_HEAD.codec, _PAYLOAD, _HEAD.raw))


def run_pack(data: bytes) -> None:
    """Footer, then every record; without a footer, the records that a walk finds."""
    tier = MemoryTier(data)
    rows = []
    try:
        rows = reader.read_footer(tier, PACK_ID.hex(), STORE_ID)
    finally:
        opened = OpenedPacks(tier, STORE_ID).get(PACK_ID.hex())
        for row in rows or lpk.salvage(data):
            run_typed(lambda row=row: reader.read_record(tier, row, opened))


def run_typed(work: Callable[[], object]) -> None:
    """An error of ours in one place must not hide what comes after it."""
    try:
        work()
    except LeptonError as error:
        assert str(error) and "\n" not in str(error)


def run_record(data: bytes) -> None:
    """One record; whatever dictionary it names is the one of the specimens."""
    header, payload = lpk.parse_record(data)
    named = header.dictionary != lpk.DICTIONARY_NONE and header.kind != lpk.KIND_REFERENCE
    dictionary = DICTIONARY if named else None
    plain = codec.decode(header.codec, payload, header.raw, header.plane_width, dictionary)
    assert len(plain) == header.raw


def repair_record(data: bytes) -> bytes:
    """The stored length, and the CRC."""
    if len(data) < lpk.RECORD_HEADER_BYTES:
        return data
    head, payload = bytearray(data[:60]), data[64:]
    struct.pack_into("<Q", head, 12, len(payload))
    return bytes(head) + struct.pack("<I", zlib.crc32(head, zlib.crc32(payload))) + payload


def repair_header(data: bytes) -> bytes:
    """Its check."""
    return data[:96] + digest_of(data[:96]) + data[128:]


def repair_pack(data: bytes) -> bytes:
    """The length in the trailer and both checks; the CRCs of the records at their old places."""
    if len(data) < lpk.OVERHEAD_BYTES:
        return data
    header, trailer = repair_header(data[:128]), bytearray(data[-lpk.TRAILER_BYTES :])
    struct.pack_into("<Q", trailer, 32, len(data))
    offset, length = struct.unpack_from("<QQ", trailer, 16)
    body, at = bytearray(data[128 : -lpk.TRAILER_BYTES]), 0
    for original in RECORDS:
        if at + len(original) <= len(body):
            body[at : at + len(original)] = repair_record(bytes(body[at : at + len(original)]))
        at += len(original)
    footer = (header + body)[offset : offset + length] if offset < len(data) and length < len(data) else b""
    return header + bytes(body) + trailer[:48] + digest_of_parts((header, footer, bytes(trailer[:48])))


def run_trailer(data: bytes) -> None:
    """Trailer and footer of a pack."""
    trailer = data[-lpk.TRAILER_BYTES :]
    where = lpk.parse_trailer(trailer, len(data))
    footer = data[where.footer_offset : where.footer_offset + where.footer_bytes]
    rows = lpk.parse_footer(data[: lpk.HEADER_BYTES], footer, trailer, len(data))
    some = lpk.parse_footer(data[: lpk.HEADER_BYTES], footer, trailer, len(data), lpk.KIND_DICTIONARY)
    assert some == [row for row in rows if row.kind == lpk.KIND_DICTIONARY]


def run_footer(rows: bytes) -> None:
    """A pack with whole records, whose footer says what it likes: every row of it is read."""
    end = len(PACK_RECORDS)
    footer = zstandard.ZstdCompressor().compress(to_planes(rows, lpk.FOOTER_ROW_BYTES))
    size = end + len(footer) + lpk.TRAILER_BYTES
    trailer = TRAILER.pack(b"LEND", 1, 0, 0, len(rows) // lpk.FOOTER_ROW_BYTES, end, len(footer), size, 0)
    run_pack(PACK_RECORDS + footer + trailer + digest_of_parts((PACK[: lpk.HEADER_BYTES], footer, trailer)))


def run_salvage(data: bytes) -> None:
    """What it finds lies in the pack, in order, without overlap."""
    end = 0
    for row in lpk.salvage(data):
        assert end <= row.offset and row.end <= len(data)
        end = row.end


def repair_list(data: bytes) -> bytes:
    """Its check."""
    return data[:-32] + digest_of(data[:-32]) if len(data) >= 32 else data


# -- block volumes ---------------------------------------------------------------------------------------------------

_LAID_OUT = volume.laid_out(bytes(range(16)), 80 << 10, volume.UNIT_BYTES_MIN, STORE_ID)
assert _LAID_OUT is not None
VOLUME = replace(_LAID_OUT, headers=4)
_SEGMENTS = [
    volume.SegmentHeader(0, 5, PACK_ID, 9_000, (2, 0, 7)),
    volume.SegmentHeader(1, 4),
    volume.SegmentHeader(2, 6, bytes(range(32, 48)), 4_096, (1,)),
]
# Where the sectors stand: superblocks, note, both copies of each header. Between them are only zeros.
_SECTORS = (
    0,
    volume.BLOCK_BYTES,
    volume.NOTE_OFFSET,
    *(VOLUME.header_offset(number) + copy for number in range(VOLUME.headers) for copy in (0, 2_048)),
)


def volume_of(sectors: bytes) -> bytes:
    """A whole volume of the sectors at their places; what is left over is where packs are."""
    out = bytearray(VOLUME.size)
    for at, place in enumerate(_SECTORS):
        sector = sectors[at * volume.SECTOR_BYTES : (at + 1) * volume.SECTOR_BYTES]
        out[place : place + len(sector)] = sector
    rest = sectors[len(_SECTORS) * volume.SECTOR_BYTES :][: VOLUME.capacity]
    out[VOLUME.data_offset : VOLUME.data_offset + len(rest)] = rest
    return bytes(out)


def _sectors() -> bytes:
    whole = bytearray(VOLUME.size)
    for one in (replace(VOLUME, generation=8), replace(VOLUME, generation=9)):
        whole[one.copy_offset : one.copy_offset + volume.BLOCK_BYTES] = one.encode()
    whole[volume.NOTE_OFFSET : volume.HEADERS_OFFSET] = volume.Note(6, 1_234, "host").encode()
    for segment in _SEGMENTS:
        place = VOLUME.header_offset(segment.number)
        whole[place : place + volume.BLOCK_BYTES] = segment.encode(VOLUME)
    return b"".join(bytes(whole[place : place + volume.SECTOR_BYTES]) for place in _SECTORS)


def run_volume(sectors: bytes) -> None:
    """Opened as a file: every pack that it says it has can be read, and lies where packs are; the note, if it has one."""
    data = volume_of(sectors)
    void(volume.parse_note(data[volume.NOTE_OFFSET : volume.HEADERS_OFFSET]))
    fd = os.memfd_create("volume")
    try:
        os.write(fd, data)
        opened = VolumeReader(Path(f"/proc/self/fd/{fd}"))
        for pack in opened.packs():
            header = opened.find(pack)
            assert header is not None
            runs = list(opened.superblock.runs(header.units, 0, header.length))
            assert all(opened.superblock.data_offset <= place and place + size <= len(data) for place, size in runs)
            assert len(opened.read_units(pack, header.units, 0, header.length)) == header.length
    finally:
        os.close(fd)


def repair_sectors(data: bytes) -> bytes:
    """The check of each sector."""
    size, checked = volume.SECTOR_BYTES, volume.SECTOR_BYTES - 32
    whole = len(data) // size * size
    sectors = [data[at : at + size] for at in range(0, whole, size)]
    return b"".join(one[:checked] + digest_of(one[:checked]) if any(one) else one for one in sectors) + data[whole:]


# -- documents -----------------------------------------------------------------------------------------------------


def reframe(data: bytes) -> bytes:
    """Length and digest of the body."""
    line, _, body = data.partition(b"\n")
    words = line.split(b" ")
    if len(words) != 5:
        return data
    return b" ".join([*words[:3], str(len(body)).encode(), digest_of(body).hex().encode()]) + b"\n" + body


STAMP = {"write_id": "00", "time_ns": 1, "author": "a", "host": "h", "action": "import"}
ENTRY = {
    **STAMP,
    "sequence": 1,
    "previous": "0" * 64,
    "packs_added": [{"id": PACK_ID.hex(), "bytes": 4_096, "content": 1}],
    "packs_removed": ["00" * 16],
    "refs": [{"name": "dataset/a/main", "old": None, "new": "ab" * 32, "metrics": {"rows": 3}}],
    "settings": {"quota": 9},
    "requires": [],
    "fence": ["11" * 16],
    "rescue": [],
    "forgotten": ["cd" * 32],
}


def _snapshot() -> bytes:
    state = LogState()
    state.apply(framed.encode("log", ENTRY), "entry")
    return framed.encode("snapshot", state.to_json())


def run_log(data: bytes) -> None:
    """An entry that is refused changes nothing; one that is taken can be told by a snapshot."""
    state = LogState()
    try:
        state.apply(data, "entry 1")
    except LeptonError:
        assert state == LogState()
        raise
    again = LogState.from_json(framed.parse(framed.encode("snapshot", state.to_json()), "snapshot", "s"), "s")
    assert again == state


def run_snapshot(data: bytes) -> None:
    """A snapshot that is taken is one that we could have written."""
    state = LogState.from_json(framed.parse(data, "snapshot", "snapshot 1"), "snapshot 1")
    framed.encode("snapshot", state.to_json())


def run_config(data: bytes) -> None:
    """A config that is taken can be written again."""
    config = parse_config(data, "config")
    assert parse_config(config.encode(), "config").encode() == config.encode()


KEYS = StoreKeys(bytes(32), STORE_ID)
KEY = Key("ab" * 16, "key-file", "laptop", 1, STORE_ID, bytes(32), None, bytes(48))


def seal(data: bytes) -> bytes:
    """The framed document `data` as an encrypted store keeps it: what a reader with the key unseals."""
    try:
        body = data.partition(b"\n")[2]
        return KEYS.documents.encode("log", json.loads(body))
    except (ValueError, TypeError):
        return data


# -- rows ----------------------------------------------------------------------------------------------------------


def run_page(data: bytes) -> None:
    """As every type that the specimens have; what is taken is valid for Arrow."""
    for array in ARRAYS:
        run_typed(lambda kind=array.type: decode_page(data, kind).values.validate(full=True))


def run_commit(data: bytes) -> None:
    """A commit that is taken can be written again."""
    encode_commit(parse_commit(data))


def run_schema(data: bytes) -> None:
    """JSON -> schema; a page of its first column may say what it likes."""
    for field in schema_from_json(framed.parse_json(data, "schema")):
        run_typed(lambda kind=field.type: decode_page(encode_page(ARRAYS[0]), kind))


_TYPES = [
    "string",
    ["fixed_size_binary", 3],
    ["timestamp", "us", "UTC"],
    ["decimal128", 9, 2],
    ["list", {"name": "item", "nullable": True, "type": "int8"}],
    ["fixed_size_list", {"name": "item", "nullable": True, "type": "float16"}, 2],
    ["struct", [{"name": "a", "nullable": False, "type": ["tensor", "uint8", [2, 2]]}]],
]
_SCHEMA = [{"name": f"c{at}", "nullable": True, "type": kind} for at, kind in enumerate(_TYPES)]
_GROUP = RowGroup(
    3, ((Part(bytes(32), 3, 0, 9, 7, True, bytes(16)),), (Part(bytes(32), 1, 0, 9), Part(bytes(32), 2, 0, 9)))
)
_INNER = InternalNode(2, (Child(bytes(32), 1, 2), Child(bytes(range(32)), 3, 4)))
_KEYED = InternalNode(1, (Child(bytes(32), 1, 2, b""), Child(bytes(range(32)), 3, 4, b"a\0b")))
_COMMIT = Commit(
    "dataset", pa.schema([pa.field("a", TENSOR, False, {"k": "v"})]), ("a",), bytes(32), 3, 9, (bytes(32),)
)

TARGETS: dict[str, Target] = {
    "header": Target(lambda data: void(lpk.parse_header(data)), (PACK[:128],), repair_header),
    "record": Target(run_record, tuple(RECORDS[1:]), repair_record),
    "trailer": Target(run_trailer, (PACK,), repair_pack),
    "pack": Target(run_pack, (PACK, pack_of([])), repair_pack),
    "footer": Target(run_footer, (ROWS,)),
    "group": Target(lambda data: void(lpk.parse_group(data)), (lpk.encode_group([b"a", b"", b"bc" * 9]),)),
    "salvage": Target(run_salvage, (PACK, b"".join(RECORDS))),
    "volume": Target(run_volume, (_sectors(),), repair_sectors),
    "chunk list": Target(
        lambda data: void(lpk.parse_chunk_list(data)), (lpk.encode_chunk_list([(bytes(32), 5)] * 3),), repair_list
    ),
    "reference": Target(lambda data: void(parse_reference(data)), (REFERENCE,)),
    "node": Target(
        lambda data: void(parse_node(data)),
        (encode_row_group(_GROUP), encode_internal(_INNER), encode_internal(_KEYED)),
    ),
    "page": Target(run_page, tuple(encode_page(array) for array in ARRAYS)),
    "commit": Target(run_commit, (encode_commit(_COMMIT),)),
    "schema": Target(run_schema, (framed.canonical_json(_SCHEMA),)),
    "config": Target(
        run_config, (StoreConfig(STORE_ID).encode(), StoreConfig(STORE_ID).encrypted_by(KEYS).encode()), reframe
    ),
    "log entry": Target(run_log, (framed.encode("log", ENTRY),), reframe),
    "snapshot": Target(run_snapshot, (_snapshot(),), reframe),
    "key": Target(lambda data: void(parse_key(data, KEY.id, "key")), (KEY.encode(),), reframe),
    "sealed entry": Target(
        lambda data: void(LogState().apply(data, "entry", KEYS.documents)),
        (seal(framed.encode("log", ENTRY)),),
        reframe,
    ),
    "entry in a seal": Target(
        lambda data: void(LogState().apply(data, "entry", KEYS.documents)), (framed.encode("log", ENTRY),), seal
    ),
}
