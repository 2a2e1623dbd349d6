"""The formats: golden vectors, round trips, and refusal of everything that is cut, altered or newer."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.digest import digest_of
from leptonstore.errors import FormatDamaged, FormatTooNew, SchemaError
from leptonstore.format import framed
from leptonstore.format import pack as lpk
from leptonstore.format.commit import Commit, encode_commit, parse_commit
from leptonstore.format.node import Child, InternalNode, Part, RowGroup, encode_internal, encode_row_group, parse_node
from leptonstore.format.page import decode_page, encode_page
from leptonstore.format.schema import schema_from_json, schema_to_json, type_from_json, type_to_json

TENSOR = pa.fixed_shape_tensor(pa.uint8(), [2, 2])
ARRAYS = [
    pa.array([1, None, 3], pa.int32()),
    pa.array(["a", None, "ccc", ""]),
    pa.array([b"a", None, b"\xff"], pa.large_binary()),
    pa.array([True, None, False]),
    pa.array([[1, 2], None, [3]], pa.list_(pa.int64())),
    pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int16(), 2)),
    pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
    pa.array([], pa.string()),
    pa.array([1.5, float("nan")], pa.float16()),
    pa.array([1, None], pa.timestamp("us", "UTC")),
    pa.ExtensionArray.from_storage(TENSOR, pa.FixedSizeListArray.from_arrays(pa.array(range(8), pa.uint8()), 4)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.type)[:30])
def test_page_is_a_function_of_the_values(array: pa.Array) -> None:
    data = encode_page(array)
    back = decode_page(data, array.type).values
    back.validate(full=True)
    assert encode_page(back) == data and back.type == array.type and len(back) == len(array)
    if not isinstance(array.type, pa.ExtensionType):
        assert encode_page(pa.concat_arrays([array, array]).slice(len(array))) == data, "slicing shows"


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.type)[:30])
def test_page_refuses_every_truncation_and_a_tail(array: pa.Array) -> None:
    data = encode_page(array)
    for length in range(len(data)):
        with pytest.raises(FormatDamaged):
            decode_page(data[:length], array.type)
    with pytest.raises(FormatDamaged):
        decode_page(data + b"\0", array.type)


def test_bytes_under_a_null_do_not_show_in_the_page() -> None:
    validity = pa.py_buffer(b"\x05")
    one = pa.Array.from_buffers(pa.int8(), 3, [validity, pa.py_buffer(b"\1\2\3")])
    other = pa.Array.from_buffers(pa.int8(), 3, [validity, pa.py_buffer(b"\1\7\3")])
    assert encode_page(one) == encode_page(other)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([array.type for array in ARRAYS]))
def test_any_bytes_as_a_page_are_refused_or_valid(data: bytes, data_type: pa.DataType) -> None:
    for candidate in (data, b"LPG1" + data):
        try:
            decode_page(candidate, data_type).values.validate(full=True)
        except FormatDamaged:
            continue


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(encode_page(ARRAYS[1])) - 1), st.integers(1, 255))
def test_an_altered_page_never_crashes_the_reader(at: int, flip: int) -> None:
    data = bytearray(encode_page(ARRAYS[1]))
    data[at] ^= flip
    try:
        decode_page(bytes(data), pa.string()).values.to_pylist()
    except FormatDamaged:
        return


def test_golden_vectors() -> None:
    """These digests are the format: when one changes, stores out in the world can no longer be shared."""
    page = encode_page(pa.array([1, None, 3], pa.int32()))
    assert digest_of(page).hex() == GOLDEN["page"]
    part = Part(bytes(range(32)), 3, 1, len(page), 0, False, bytes(16))
    assert digest_of(encode_row_group(RowGroup(3, ((part,),)))).hex() == GOLDEN["row group"]
    node = InternalNode(1, (Child(bytes(32), 3, 10), Child(bytes(range(32)), 4, 20)))
    assert digest_of(encode_internal(node)).hex() == GOLDEN["internal"]
    commit = Commit("dataset", pa.schema([pa.field("a", pa.int32())]), ("a",), bytes(32), 3, 10, (), "é", {"b": 1})
    assert digest_of(encode_commit(commit)).hex() == GOLDEN["commit"]
    header = lpk.PackHeader(lpk.CONTENT_DATA, bytes(16), bytes(range(16)), bytes(32)).encode()
    record = lpk.RecordHeader(lpk.KIND_CHUNK, lpk.CODEC_RAW, 0, 0, lpk.DICTIONARY_NONE, 3, 3, digest_of(b"abc"))
    assert digest_of(header + lpk.encode_record(record, zlib.crc32(b"abc")) + b"abc").hex() == GOLDEN["pack"]


KEYED_NODE = InternalNode(
    1, (Child(bytes(32), 1, 2, b""), Child(bytes(range(32)), 3, 4, b"a\0b"), Child(bytes(32), 1, 2, b"b"))
)


def test_keys_in_nodes_ascend_and_are_short() -> None:
    for keys in ((b"b", b"a"), (b"a", b"b" * 65)):
        data = encode_internal(InternalNode(1, tuple(Child(bytes(32), 1, 2, key) for key in keys)))
        with pytest.raises(FormatDamaged, match="key"):
            parse_node(data)
    with pytest.raises(FormatDamaged, match="flags"):
        parse_node(data[:5] + b"\x02" + data[6:])


def test_nodes_and_commits_round_trip_and_refuse_truncation() -> None:
    group = RowGroup(
        3, ((Part(bytes(32), 3, 0, 9, 7, True, bytes(16)),), (Part(bytes(32), 1, 0, 9), Part(bytes(32), 2, 0, 9)))
    )
    for node, data in (
        (group, encode_row_group(group)),
        (InternalNode(2, (Child(bytes(32), 1, 2),)), encode_internal(InternalNode(2, (Child(bytes(32), 1, 2),)))),
        (KEYED_NODE, encode_internal(KEYED_NODE)),
    ):
        assert parse_node(data) == node
        for length in range(len(data)):
            with pytest.raises(FormatDamaged):
                parse_node(data[:length])
    commit = Commit("model", pa.schema([pa.field("a", TENSOR, False, {"k": "v"})]), ("a",), None, 0, 0, (bytes(32),))
    data = encode_commit(commit)
    assert parse_commit(data).schema.equals(commit.schema, check_metadata=True)
    assert encode_commit(parse_commit(data)) == data
    for length in range(len(data)):
        with pytest.raises(FormatDamaged):
            parse_commit(data[:length])


def _pack() -> tuple[bytes, list[lpk.FooterRow]]:
    header = lpk.PackHeader(lpk.CONTENT_DATA, bytes(16), bytes(range(16)), bytes(32)).encode()
    out, rows = bytearray(header), []
    for payload in (b"abc", b"d" * 100, b""):
        name = digest_of(payload)
        record = lpk.RecordHeader(1, 0, 0, 0, lpk.DICTIONARY_NONE, len(payload), len(payload), name)
        rows.append(lpk.FooterRow(name, len(out), len(payload), len(payload), 1, 0, 0, 0, lpk.DICTIONARY_NONE))
        out += lpk.encode_record(record, zlib.crc32(payload)) + payload
    return bytes(out + lpk.encode_end(header, rows, len(out))), rows


def _read_pack(data: bytes) -> None:
    """What a reader does with a pack: everything in it."""
    lpk.parse_header(data[: lpk.HEADER_BYTES])
    trailer = data[-lpk.TRAILER_BYTES :]
    where = lpk.parse_trailer(trailer, len(data))
    footer = data[where.footer_offset : where.footer_offset + where.footer_bytes]
    for row in lpk.parse_footer(data[: lpk.HEADER_BYTES], footer, trailer, len(data)):
        header, payload = lpk.parse_record(data[row.offset : row.end])
        if digest_of(payload) != header.digest or header.digest != row.digest:
            raise FormatDamaged("digest")


def test_every_flipped_byte_of_a_pack_is_noticed() -> None:
    data, _ = _pack()
    _read_pack(data)
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 0x40
        with pytest.raises((FormatDamaged, FormatTooNew)):
            _read_pack(bytes(bad))


def test_salvage_finds_every_whole_record_without_a_footer() -> None:
    data, rows = _pack()
    assert list(lpk.salvage(data[: rows[-1].end])) == rows
    bad = bytearray(data)
    bad[rows[1].offset + 70] ^= 1
    assert [row for row in lpk.salvage(bytes(bad)) if row in rows] == [rows[0], rows[2]]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_as_a_chunk_list_or_framed_document_are_refused(data: bytes) -> None:
    with pytest.raises(FormatDamaged):
        lpk.parse_chunk_list(data)
    with pytest.raises(FormatDamaged):
        framed.parse(data, "config", "it")


def test_framed_documents_refuse_what_is_newer_or_altered() -> None:
    data = framed.encode("log", {"a": [1, "é"]})
    assert framed.parse(data, "log", "it") == {"a": [1, "é"]}
    for bad in (data + b" ", data[:-1], data.replace(b'"a"', b'"b"')):
        with pytest.raises(FormatDamaged):
            framed.parse(bad, "log", "it")
    with pytest.raises(FormatDamaged, match="does not begin"):
        framed.parse(data, "config", "it")
    with pytest.raises(FormatTooNew, match=r"format 2\.0"):
        framed.parse(data.replace(b" 1.0 ", b" 2.0 "), "log", "it")
    with pytest.raises(FormatTooNew, match="features"):
        framed.parse(framed.encode("log", {}, features=1 << 5), "log", "it")


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.type)[:30])
def test_types_round_trip(array: pa.Array) -> None:
    assert type_from_json(type_to_json(array.type)) == array.type


@pytest.mark.parametrize(
    "data_type",
    [
        pa.list_(pa.int8(), 0),
        pa.binary(0),
        pa.fixed_shape_tensor(pa.int8(), [2, 0]),
        pa.list_(pa.struct([pa.field("x", pa.list_(pa.int8(), 0))])),
    ],
    ids=str,
)
def test_a_size_of_zero_which_no_reader_takes_is_refused_when_it_is_written(data_type: pa.DataType) -> None:
    with pytest.raises(SchemaError, match=r"column 'u'.*empty"):
        schema_to_json(pa.schema([pa.field("u", data_type)]))


@pytest.mark.parametrize(
    "wrap", [pa.list_, lambda inner: pa.struct([pa.field("x", inner)]), lambda inner: pa.list_(inner, 1)]
)
def test_the_deepest_type_that_is_written_is_the_deepest_that_is_read(
    wrap: Callable[[pa.DataType], pa.DataType],
) -> None:
    data_type = pa.int8()
    for _ in range(limits.TYPE_DEPTH_MAX):
        data_type = wrap(data_type)
    schema = pa.schema([pa.field("u", data_type)])
    assert schema_from_json(schema_to_json(schema)) == schema
    with pytest.raises(SchemaError, match=r"column 'u'.*deep"):
        schema_to_json(pa.schema([pa.field("u", wrap(data_type))]))


def test_schemas_that_cannot_be_kept_are_refused_by_column() -> None:
    with pytest.raises(SchemaError, match="'u'"):
        schema_to_json(pa.schema([pa.field("u", pa.dictionary(pa.int8(), pa.string()))]))
    with pytest.raises(SchemaError, match="unique"):
        schema_to_json(pa.schema([pa.field("a", pa.int8()), pa.field("a", pa.int8())]))
    nested: object = "int8"
    for _ in range(100):
        nested = ["list", {"name": "item", "nullable": True, "type": nested}]
    with pytest.raises(FormatDamaged):
        schema_from_json([{"name": "a", "nullable": True, "type": nested}])


GOLDEN = {
    "page": "b3b54c983387cf1f37a5085ce5308c9604a26837bd4e53c5bd67d129f41452bb",
    "row group": "b3ce3e528d017d17d93622488fdef3ec17b043f21fd2da6c6855166c61b28012",
    "internal": "3c838311be3123b274ce892d7f8196066937ff977fcb72c469acb5cefa50b3d2",
    "commit": "407e932603b4c63a4c0f65267c13b84ec6abf5d79f83125623d70fb210007883",
    "pack": "c86e2726f5b0ef2b7f3e2214152ae1c52c72a7988ef3005defac2bbd724d76ac",
}
