"""Whatever is wrong with what is imported: one line that names file, row and column, and the branch as it was."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.errors import BadInput, SchemaError, SourceError
from leptonstore.store import Store

ROWS = 20_000


def ragged_csv(path: Path) -> None:
    path.write_text("a,b\n" + "1,x\n" * ROWS + "2,y,extra\n")


def mixed_csv(path: Path) -> None:
    path.write_text("a,b\n" + "1,x\n" * ROWS + "one,y\n")


def mixed_jsonl(path: Path) -> None:
    path.write_text('{"a": 1}\n' * ROWS + '{"a": "one"}\n')


def long_jsonl(path: Path) -> None:
    path.write_text('{"a": "x"}\n' * ROWS + json.dumps({"a": "x" * 3_000_000}) + "\n")


def map_parquet(path: Path) -> None:
    pq.write_table(pa.table({"fine": [1], "odd": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))}), path)


def climbing_tar(path: Path) -> None:
    _tar(path, [("0.txt", b"good"), ("../1.txt", b"bad")])


def linking_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("0.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)


def _tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def lying_image(path: Path) -> None:
    """Raw pixels in MDS whose header says another size; the rest of the shard is in order."""
    path.mkdir()
    picture = np.array([4, 4, 1], "<u4").tobytes() + b"L" + bytes(16)
    liar = np.array([40_000, 40_000, 1], "<u4").tobytes() + b"L" + bytes(16)
    samples = [len(each).to_bytes(4, "little") + each for each in (picture, picture, liar)]
    offsets = np.cumsum([4 + 16, *map(len, samples)]).astype("<u4")
    data = (3).to_bytes(4, "little") + offsets.tobytes() + b"".join(samples)
    (path / "shard.00000.mds").write_bytes(data)
    raw = {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {}}
    shard = {"column_names": ["image"], "column_encodings": ["pil"], "column_sizes": [None], "compression": None}
    shard |= {
        "format": "mds",
        "hashes": [],
        "raw_data": raw,
        "samples": 3,
        "size_limit": None,
        "version": 2,
        "zip_data": None,
    }
    (path / "index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))


def short_array(path: Path) -> None:
    np.save(path, np.ones((ROWS, 3)))
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("make", "name", "match"),
    [
        (ragged_csv, "t.csv", r"t\.csv as CSV: .*Row #20002: Expected 2 columns, got 3"),
        (mixed_csv, "t.csv", r"t\.csv as CSV: In CSV column #0: Row #20002: .*'one'"),
        (mixed_jsonl, "t.jsonl", r"t\.jsonl: line 20001, column 'a'"),
        (long_jsonl, "t.jsonl", r"t\.jsonl: line 20001 has more than 1000000 bytes"),
        (map_parquet, "t.parquet", r"t\.parquet: column 'odd' has type map"),
        (climbing_tar, "t.tar", r"t\.tar holds the path '\.\./1\.txt', which leads out"),
        (linking_tar, "t.tar", r"t\.tar holds '0\.txt', a symbolic link"),
        (
            lying_image,
            "mds",
            r"shard\.00000\.mds: sample 2.*says 40000 x 40000|'image' has an image that says 40000 x 40000",
        ),
        (short_array, "t.npy", r"t\.npy has \d+ bytes, its header says"),
    ],
)
def test_bad_input_names_the_place_and_leaves_the_branch(
    store: Store,
    source_of: Callable[..., Source],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    name: str,
    match: str,
) -> None:
    monkeypatch.setattr(limits, "CSV_BLOCK_BYTES", 50_000)
    monkeypatch.setattr(limits, "JSON_BLOCK_BYTES", 50_000)
    monkeypatch.setattr(limits, "JSON_LINE_BYTES_MAX", 1_000_000)
    before = write_dataset(store, "t", source_of(pa.table({"a": [1, 2]}), ("a",)))
    make(tmp_path / name)
    with pytest.raises(BadInput, match=match) as caught:
        write_dataset(store, "t", open_source(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert Dataset.open(store, "t").commit == before.commit
    with Store.open(store.home.url) as again:
        assert Dataset.open(again, "t").to_arrow().equals(before.to_arrow())


@pytest.mark.parametrize("format", ["jsonl", "arrow", "webdataset", "mds", "huggingface"])
def test_an_import_that_was_interrupted_is_repeated_cheaply(
    store: Store, source_of: Callable[..., Source], tmp_path: Path, format: str
) -> None:
    """What was stored is found: nothing of it is written a second time."""
    rows = np.random.default_rng(0)
    blobs = [rows.bytes(2_000).hex() for _ in range(6_000)]
    made = write_dataset(store, "t", source_of(pa.table({"blob": blobs, "n": range(6_000)}), ("n",)))
    dest = tmp_path / {"jsonl": "t.jsonl", "arrow": "t.arrow"}.get(format, format)
    export_dataset(made, dest, format)

    class Interrupted(Exception):
        pass

    def stop(rows: int) -> None:
        if rows > 4_000:
            raise Interrupted

    with Store.create(tmp_path / "other") as other:
        with pytest.raises(Interrupted):
            write_dataset(other, "t", open_source(dest), progress=stop)
        assert not other.state.refs
    with Store.open(tmp_path / "other") as other:
        done = write_dataset(other, "t", open_source(dest))
        assert done.to_arrow(["blob"]).equals(made.to_arrow(["blob"]))
        whole = other.new_bytes
    with Store.create(tmp_path / "third") as third:
        write_dataset(third, "t", open_source(dest))
        assert whole <= third.new_bytes
        before = third.new_bytes
        assert write_dataset(third, "t", open_source(dest)).commit == done.commit
        assert third.new_bytes == before


def test_export_refuses_what_a_format_cannot_say(
    store: Store, source_of: Callable[..., Source], tmp_path: Path
) -> None:
    made = write_dataset(store, "t", source_of(pa.table({"n": [1, 2, None], "s": ["a", "b", "c"]}), ("s",)))
    row = made.to_arrow()["n"].to_pylist().index(None)
    for format in ("npz", "safetensors"):
        with pytest.raises(SchemaError, match=r"cannot hold column 's' \(string\)"):
            export_dataset(made, tmp_path / "x", format)
    for format in ("mds",):
        with pytest.raises(BadInput, match=rf"row {row} has no value in column 'n'"):
            export_dataset(made, tmp_path / "y", format)
    keyed = write_dataset(store, "k", source_of(pa.table({"__key__": ["a.b"], "x": ["1"]}), ("x",)))
    with pytest.raises(BadInput, match=r"row 0 has the key 'a\.b'"):
        export_dataset(keyed, tmp_path / "z", "webdataset")
    climbing = write_dataset(store, "c", source_of(pa.table({"__key__": ["../a"], "x": ["1"]}), ("x",)))
    with pytest.raises(BadInput, match="not one inside of a folder"):
        export_dataset(climbing, tmp_path / "z2", "webdataset")
    assert not any(path.suffix in (".npz", ".tar", ".mds") for path in tmp_path.rglob("*"))


class _Refusing(pa.ExtensionType):
    """As `datasets` registers types: whatever its text is given to may raise anything."""

    def __init__(self) -> None:
        super().__init__(pa.int64(), "lepton.test.refusing")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> pa.ExtensionType:
        raise ValueError("expecting something else")


def test_an_extension_type_whose_code_fails_is_an_error_of_the_file(tmp_path: Path) -> None:
    """Found by fuzzing: an altered file made the code of another library's type raise a JSONDecodeError."""
    path = tmp_path / "t.arrow"
    column = pa.ExtensionArray.from_storage(_Refusing(), pa.array([1, 2], pa.int64()))
    table = pa.table({"x": column})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    pa.register_extension_type(_Refusing())
    try:
        with pytest.raises(SourceError, match="its extension type cannot be made"):
            open_source(path, "arrow")
    finally:
        pa.unregister_extension_type("lepton.test.refusing")
