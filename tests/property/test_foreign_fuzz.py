"""Foreign files, truncated, altered and hostile: a table or a BadInput of one line, never another error, in bounded memory."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import struct
import tarfile
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_strategies import Rows

from leptonstore import limits
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.plain import encode_schema
from leptonstore.dataset.schema import class_label_field, image_field
from leptonstore.errors import BadInput, SourceError

MEMORY_BYTES_MAX = 24 << 20
MANY = settings(
    max_examples=40,
    deadline=datetime.timedelta(seconds=60),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TENSOR = pa.fixed_shape_tensor(pa.int16(), [2, 2])
STORAGE = pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.int16()), 4)
NUMBERS = pa.Table.from_arrays(
    [pa.array([1, 2, 3], pa.int64()), pa.ExtensionArray.from_storage(TENSOR, STORAGE)], names=["n", "tensor"]
)
SCHEMA = pa.schema(
    [
        image_field("image", "jpeg"),
        class_label_field("label", ["a", "b"]),
        *NUMBERS.schema,
        pa.field("text", pa.string()),
    ]
)
MIXED = pa.Table.from_arrays(
    [
        pa.array([b"\xff\xd8a", b"", b"c"], pa.large_binary()),
        pa.array([0, 1, 0], pa.uint8()),
        *NUMBERS.columns,
        pa.array(["x", "é", ""]),
    ],
    schema=SCHEMA,
)


def exported(table: pa.Table, name: str, format: str, **options: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        dest = Path(folder) / name
        export_dataset(Rows(table), dest, format, **options)
        if dest.is_file():
            return {name: dest.read_bytes()}
        return {str(path.relative_to(dest)): path.read_bytes() for path in dest.rglob("*") if path.is_file()}


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def tar(files: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


FOREIGN_TAR = {
    "0.jpg": b"\xff\xd8",
    "0.cls": b"3",
    "0.npy": npy(np.ones(3, np.float32)),
    "1.jpg": b"x",
    "1.cls": b"4",
    "1.json": b"{}",
}


@dataclass(frozen=True)
class Target:
    """A format with a valid specimen: files by name, of which `altered` is the one to alter; opened is what is imported."""

    format: str
    files: dict[str, bytes]
    altered: str
    opened: str = ""
    repair: Callable[[bytes], bytes] = bytes


def repair_tar(data: bytes) -> bytes:
    """The checks of headers at their old places."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


MDS = exported(MIXED, "t", "mds")
HF = exported(MIXED, "t", "huggingface")


def foreign(data: bytes) -> bytes:
    """An Arrow stream without our schema: what the features say counts."""
    table = pa.ipc.open_stream(data).read_all()
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None))
    return out.getvalue()


HF_FOREIGN = {name: foreign(data) if name.endswith(".arrow") else data for name, data in HF.items()}
LONG = {f"{'d' * 60}/{'e' * 90}.txt": b"a", "b.txt": b"b"}
TARGETS = {
    "npy": Target("numpy", {"a.npy": npy(np.arange(12.0).reshape(4, 3))}, "a.npy", "a.npy"),
    "npy fortran": Target("numpy", {"a.npy": npy(np.asfortranarray(np.ones((4, 3))))}, "a.npy", "a.npy"),
    "npy text": Target("numpy", {"a.npy": npy(np.array(["a", "bc"]))}, "a.npy", "a.npy"),
    "npz": Target("numpy", {"a.npz": npz(x=np.arange(4), y=np.ones((4, 2), bool))}, "a.npz", "a.npz"),
    "npz ours": Target("numpy", exported(NUMBERS, "a.npz", "npz"), "a.npz", "a.npz"),
    "safetensors": Target(
        "safetensors", exported(NUMBERS, "a.safetensors", "safetensors"), "a.safetensors", "a.safetensors"
    ),
    "mds index": Target("mds", MDS, "index.json"),
    "mds shard": Target("mds", MDS, "shard.00000.mds"),
    "mds zstd": Target("mds", exported(MIXED, "t", "mds", compression="zstd"), "shard.00000.mds.zstd"),
    "tar": Target("webdataset", {"a.tar": tar(FOREIGN_TAR)}, "a.tar", "a.tar", repair_tar),
    "tar gnu": Target("webdataset", {"a.tar": tar(LONG)}, "a.tar", "a.tar", repair_tar),
    "tar pax": Target("webdataset", {"a.tar": tar(LONG, tarfile.PAX_FORMAT)}, "a.tar", "a.tar", repair_tar),
    "tar gz": Target("webdataset", {"a.tar": gzip.compress(tar(FOREIGN_TAR))}, "a.tar", "a.tar"),
    "tar ours": Target("webdataset", exported(MIXED, "t", "webdataset"), "shard-000000.tar", "", repair_tar),
    "arrow": Target("arrow", exported(MIXED, "a.arrow", "arrow"), "a.arrow", "a.arrow"),
    "arrow stream": Target("arrow", exported(MIXED, "a.arrows", "arrow"), "a.arrows", "a.arrows"),
    "jsonl": Target(
        "jsonl", {"a.jsonl": b'{"a":1,"b":"x"}\n{"a":2,"b":[]}\n'.replace(b"[]", b"null")}, "a.jsonl", "a.jsonl"
    ),
    "hf state": Target("huggingface", HF, "state.json"),
    "hf info": Target("huggingface", HF_FOREIGN, "dataset_info.json"),
    "hf data foreign": Target("huggingface", HF_FOREIGN, "data-00000-of-00001.arrow"),
    "hf data": Target("huggingface", HF, "data-00000-of-00001.arrow"),
    "csv": Target("csv", {"a.csv": b'a,b\n1,"x"\n2,y\n'}, "a.csv", "a.csv"),
}


def runs(target: Target, data: bytes, memory: int = MEMORY_BYTES_MAX) -> bool:
    """Import it: whether it was a table. Any error is a BadInput of one line."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, content in target.files.items():
            (root / name).write_bytes(data if name == target.altered else content)
        tracemalloc.start()
        try:
            source = open_source(root / target.opened, target.format)
            for batch in source.batches():
                assert batch.schema.equals(source.schema, check_metadata=True)
                batch.validate(full=True)
        except BadInput as error:
            assert str(error)
            assert "\n" not in str(error)
            assert tracemalloc.get_traced_memory()[1] < memory
            return False
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < memory
    return True


@pytest.mark.parametrize("name", TARGETS)
def test_specimens_are_valid(name: str) -> None:
    """Else the tests below would only ever see the first refusal."""
    target = TARGETS[name]
    assert runs(target, target.repair(target.files[target.altered]))


EXTREMES = st.sampled_from(
    [0, 1, 0x7F, 0xFF, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
)


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """The specimen with a few alterations."""
    data = bytearray(target.files[target.altered])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["flip", "length", "cut", "extend", "repeat", "drop", "digit"]))
        if what == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif what == "length":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            data[at : at + width] = (draw(EXTREMES) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif what == "cut":
            del data[at:]
        elif what == "extend":
            data += draw(st.binary(max_size=70))
        elif what == "repeat":
            data[at:at] = data[at : at + draw(st.integers(0, 200))]
        elif what == "digit":
            data[at : at + 1] = draw(
                st.sampled_from([b"9", b"-", b'"', b"{", b"[", b"0" * 30, b"9" * 30, b"/", b"..", b"\0"])
            )
        else:
            del data[at : at + draw(st.integers(1, 70))]
    return target.repair(bytes(data)) if draw(st.booleans()) else bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_any_alteration_is_refused_or_harmless(name: str) -> None:
    target = TARGETS[name]

    @MANY
    @given(st.one_of(damaged(target), st.binary(max_size=600)))
    def check(data: bytes) -> None:
        runs(target, data)

    check()


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"jsonl", "csv", "arrow stream", "hf data", "hf data foreign"}))
def test_every_truncation_is_refused(name: str) -> None:
    """A file of lines, and a stream, may end anywhere between two of them. A tar may lack zeros after its mark."""
    target = TARGETS[name]
    data = target.files[target.altered]
    if name.startswith("tar") and name != "tar gz":
        data = data[: len(data.rstrip(b"\0")) // 512 * 512 + 512]
    for length in range(0, len(data), max(1, len(data) // 70)):
        assert not runs(target, data[:length]), length


# -- JSON of an index, altered as JSON -----------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["../x", "/etc/passwd", "a/b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one part replaced or taken away."""
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


@pytest.mark.parametrize("name", ["mds index", "hf state", "hf info", "safetensors"])
def test_any_json_in_an_index_is_refused_or_harmless(name: str) -> None:
    target = TARGETS[name]
    data = target.files[target.altered]
    rest = b""
    if name == "safetensors":
        (length,) = struct.unpack("<Q", data[:8])
        data, rest = data[8 : 8 + length], data[8 + length :]
    value = json.loads(data)

    @MANY
    @given(altered(value))
    def check(changed: Any) -> None:
        text = json.dumps(changed).encode()
        runs(target, struct.pack("<Q", len(text)) + text + rest if name == "safetensors" else text)

    check()


# -- hostile -------------------------------------------------------------------------------------------------------


def refused(name: str, data: bytes, match: str = "") -> None:
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        for file, content in target.files.items():
            (Path(folder) / file).write_bytes(data if file == target.altered else content)
        started = time.monotonic()
        tracemalloc.start()
        try:
            with pytest.raises(SourceError, match=match):
                list(open_source(Path(folder) / target.opened, target.format).batches())
            assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
        finally:
            tracemalloc.stop()
        assert time.monotonic() - started < 20


def tar_with(
    type_: bytes, name: str, link: str = "", size: int = 0, format: int = tarfile.GNU_FORMAT, **pax: str
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = type_, link, size, dict(pax)
    return info.tobuf(format) + bytes(1024)


@pytest.mark.parametrize("path", ["../0.jpg", "/etc/0.jpg", "a/../../0.jpg", "a//0.jpg", "a/./0.jpg", ".."])
def test_a_tar_that_climbs_is_refused_by_name(path: str) -> None:
    info = tarfile.TarInfo("x")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[: len(path) + 1] = path.encode() + b"\0"
    refused("tar", repair_tar(bytes(header)) + bytes(1024), "leads out")


@pytest.mark.parametrize(
    ("type_", "what"),
    [
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Q", "unknown type"),
    ],
)
def test_what_is_no_plain_file_in_a_tar_is_refused_by_name(type_: bytes, what: str) -> None:
    refused("tar", tar_with(type_, "0.jpg", "/etc/passwd"), rf"'0\.jpg'.*{what}")


def test_a_tar_of_lengths_that_lie() -> None:
    refused("tar", tar_with(tarfile.REGTYPE, "0.jpg", size=1 << 40), "at most")
    refused("tar", tar_with(tarfile.REGTYPE, "0.jpg", size=200 << 20), "truncated")
    refused("tar", tar_with(tarfile.XHDTYPE, "x", size=1 << 33), "extended header")
    sparse = tar_with(tarfile.REGTYPE, "0.jpg", format=tarfile.PAX_FORMAT, **{"GNU.sparse.major": "1"})
    refused("tar", sparse, "sparse")
    refused("tar", tar({"0.txt": b"a"}) + tar({"1.txt": b"b"}), "after its end mark")
    refused("tar", gzip.compress(tar_with(tarfile.XHDTYPE, "x", size=1 << 33) + bytes(64 << 20)), "extended header")
    refused("tar", tar({"0.txt": b"a", "0.TXT": b"b"}), "twice")


def test_a_pickled_array_is_never_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('it ran')",)

    out = io.BytesIO()
    np.save(out, np.array([Bomb()], object), allow_pickle=True)
    refused("npy", out.getvalue(), "pickle")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x.npy", out.getvalue())
    refused("npz", packed.getvalue(), "pickle")
    index = json.loads(MDS["index.json"])
    index["shards"][0]["column_encodings"][0] = "pkl"
    refused("mds index", json.dumps(index).encode(), "pickle")


def test_npy_headers_that_lie() -> None:
    def header(text: str, version: bytes = b"\x01\x00") -> bytes:
        return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode()

    refused("npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3)}"), "its header says")
    refused("npy", header("(" * 9_000), "damaged header")
    refused("npy", header("__import__('os').system('true')"), "damaged header")
    refused("npy", header("{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (1,)}"), "fields")
    refused("npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31), "at most 10000")
    refused("npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': ()}") + bytes(8), "without rows")


def test_zip_and_zstd_bombs_cost_no_more_than_what_is_announced() -> None:
    zeros = npy(np.zeros((1, 64 << 20), np.uint8))[:128] + bytes(64 << 20)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", zeros.replace(b"(1, 67108864)", b"(1, 4)       "))
    refused("npz", packed.getvalue(), "its header says")
    refused("mds zstd", zstandard.ZstdCompressor().compress(bytes(64 << 20)), "longer than")


def test_an_index_that_points_elsewhere_is_refused() -> None:
    for name in ("../secret", "/etc/passwd", "a/../../b", ""):
        index = json.loads(MDS["index.json"])
        index["shards"][0]["raw_data"]["basename"] = name
        refused("mds index", json.dumps(index).encode(), "not one inside of it")
        state = json.loads(HF["state.json"])
        state["_data_files"] = [{"filename": name}]
        refused("hf state", json.dumps(state).encode(), "not one inside of it")


def test_links_that_lead_outside_are_refused(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    for target, name in (
        (TARGETS["tar"], "a.tar"),
        (TARGETS["arrow"], "a.arrow"),
        (TARGETS["mds shard"], "shard.00000.mds"),
    ):
        inside.mkdir()
        for file, content in target.files.items():
            (inside / file).write_bytes(content)
        (inside / name).rename(outside / name)
        (inside / name).symlink_to(outside / name)
        with pytest.raises(SourceError, match="leads outside"):
            list(open_source(inside, target.format).batches())
        for file in inside.iterdir():
            file.unlink()
        inside.rmdir()


def test_safetensors_whose_values_overlap_or_leave_holes() -> None:
    def file(header: dict[str, Any], data: bytes) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    one = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    refused("safetensors", file({"a": one, "b": one}, b"ab"), "overlap")
    refused("safetensors", file({"a": one, "b": {**one, "data_offsets": [3, 5]}}, b"abcde"), "overlap")
    refused("safetensors", file({"a": one}, b"abc"), "its header says")
    refused("safetensors", file({"a": {**one, "shape": [1 << 60]}}, b"ab"), "damaged")
    refused("safetensors", file({"a": {**one, "dtype": "BF16"}}, b"ab"), "cast it")
    refused("safetensors", struct.pack("<Q", 1 << 60) + b"{}", "truncated")
    refused(
        "safetensors",
        file({"a": one, "b": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]}}, b"abc"),
        "one first dimension",
    )


def _with_schema(name: str, text: str) -> tuple[str, bytes]:
    """A specimen that carries another schema: (target, content)."""
    if name == "mds index":
        index = json.loads(MDS["index.json"])
        index["lepton.schema"] = text
        return name, json.dumps(index).encode()
    if name == "tar ours":
        carried = {"schema": text, "columns": {field.name: field.name for field in SCHEMA}}
        head = json.dumps(carried).encode()
        return name, tar({"__lepton_schema__": head, "0.text.txt": b"a", "1.text.txt": b"b"})
    table = pa.ipc.open_stream(HF["data-00000-of-00001.arrow"]).read_all()
    nulls = [
        pa.nulls(table.num_rows, column.type) if column.type == pa.string() else column for column in table.columns
    ]
    out = io.BytesIO()
    schema = table.schema.with_metadata({"lepton.schema": text})
    with pa.ipc.new_stream(out, schema) as writer:
        writer.write_table(pa.Table.from_arrays(nulls, schema=schema))
    return "hf data", out.getvalue()


@pytest.mark.parametrize("name", ["mds index", "tar ours", "hf data"])
@pytest.mark.parametrize(
    "kind",
    [
        ["tensor", "int64", [1 << 15, 1 << 15]],
        ["tensor", "int8", [1 << 13, 1 << 13]],
        ["fixed_size_list", {"name": "item", "nullable": True, "type": "int64"}, 1 << 30],
        ["list", {"name": "item", "nullable": True, "type": ["tensor", "uint8", [1 << 30]]}],
        ["struct", [{"name": "a", "nullable": True, "type": ["tensor", "uint8", [1 << 30]]}]],
        ["fixed_size_binary", 1 << 30],
        ["decimal128", 99, 1],
        "map",
    ],
)
def test_a_carried_schema_cannot_ask_for_memory(name: str, kind: Any) -> None:
    """Anybody may have written it; a null costs nothing in a file. A single row may take what a value may."""
    fields = json.loads(encode_schema(SCHEMA))
    for field in fields:
        if field["name"] == "text":
            field["type"] = kind
    target, data = _with_schema(name, json.dumps(fields))
    runs(TARGETS[target], data, 2 * limits.SOURCE_VALUE_BYTES_MAX)
    fields[0]["type"] = kind
    target, data = _with_schema(name, json.dumps(fields))
    runs(TARGETS[target], data, 2 * limits.SOURCE_VALUE_BYTES_MAX)


def test_a_damaged_mds_shard_is_told_by_its_digest() -> None:
    """A flipped bit in a value changes nothing but the value: only the digest of index.json tells."""
    shard = bytearray(MDS["shard.00000.mds"])
    shard[-1] ^= 1
    refused("mds shard", bytes(shard), "sha1")


def test_json_lines_name_the_line_and_the_column() -> None:
    good = b'{"a":1,"b":"x"}\n' * 2
    for bad, match in (
        (b'{"a":"x","b":"x"}', "line 3, column 'a'"),
        (b"[1]", "line 3 is no object but an array"),
        (b"{", "line 3 is not JSON"),
        (b'{"a":1}{"a":2}', "line 3 is not JSON"),
        (b'{"a":' + b"[" * 5_000, "line 3 is not JSON"),
    ):
        refused("jsonl", good + bad + b"\n" + good, match)
    # beyond the block that types are inferred from
    many = b'{"a":1,"b":"x"}\n' * 5_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "JSON_BLOCK_BYTES", 1_000)
        for bad, match in (
            (b'{"a":1.5}', r"line 5001, column 'a': 1\.5 is no int64"),
            (b'{"a":1,"c":2}', "line 5001 has a column 'c'"),
            (b'{"b":{}}', "line 5001, column 'b'"),
            (b'{"b":"\xff"}', "line 5001"),
            (b"nonsense", "line 5001 is not JSON"),
        ):
            refused("jsonl", many + bad + b"\n" + many, match)
        patch.setattr(limits, "JSON_LINE_BYTES_MAX", 5_000)
        refused("jsonl", good + b'{"b":"' + b"x" * 9_000 + b'"}\n', "line 3 has more than 5000 bytes")
