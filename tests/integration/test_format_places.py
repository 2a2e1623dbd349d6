"""Import from and export to URLs: an S3 server, fsspec's memory, HTTP; and what goes wrong there."""

from __future__ import annotations

import functools
import http.server
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.exporters import FORMATS, export_dataset
from leptonstore.dataset.importers import detect_format, open_source
from leptonstore.dataset.places import UrlPlace, place_of
from leptonstore.dataset.schema import class_label_field, image_field, tensor_field
from leptonstore.errors import BadInput, LeptonError, MissingExtra, SourceError, TierUnavailable
from leptonstore.store import Store

ROWS = 300
TENSORS = np.arange(ROWS * 4, dtype=np.int16).reshape(ROWS, 2, 2)
NUMBERS = pa.Table.from_arrays(
    [pa.FixedShapeTensorArray.from_numpy_ndarray(TENSORS), pa.array([row % 3 for row in range(ROWS)], pa.uint8())],
    schema=pa.schema([tensor_field("tensor", pa.int16(), (2, 2)), class_label_field("label", ["a", "b", "c"])]),
)
MIXED = NUMBERS.append_column(
    pa.field("text", pa.string()), pa.array([f"é {row}" * 9 for row in range(ROWS)])
).append_column(
    image_field("image", "jpeg"),
    pa.array([b"\xff\xd8\xff" + bytes([row % 256]) * 300 for row in range(ROWS)], pa.large_binary()),
)
FILES = {
    "parquet": "t.parquet",
    "jsonl": "t.jsonl.gz",
    "arrow": "t.arrow",
    "npz": "t.npz",
    "safetensors": "t.safetensors",
    "csv": "t.csv",
}
FOLDERS = ("webdataset", "mds", "huggingface")


@pytest.fixture
def memory_url() -> Iterator[str]:
    fsspec.filesystem("memory").store.clear()
    yield "memory://place/some"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("memory_url" if request.param == "memory" else "bucket_url"))


@pytest.fixture
def ds(store: Store, source_of: Callable[..., Source]) -> Dataset:
    return write_dataset(store, "t", source_of(MIXED, ("text",)))


def view(ds: Dataset, format: str, source_of: Callable[..., Source]) -> Dataset:
    """What a format holds of it."""
    if format not in ("npz", "safetensors", "csv"):
        return ds
    table = NUMBERS if format != "csv" else MIXED.select(["label", "text"])
    return write_dataset(ds.store, format, source_of(table, (table.schema.names[-1],)))


@pytest.mark.parametrize("format", [*FILES, *FOLDERS])
def test_every_format_goes_to_a_url_and_comes_back(
    ds: Dataset, url: str, format: str, source_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EXPORT_SHARD_BYTES", 40_000)
    monkeypatch.setattr(limits, "PLACE_READ_BYTES", 10_000)
    made = view(ds, format, source_of)
    dest = f"{url}/{FILES.get(format, format)}"
    report = export_dataset(made, dest, format)
    assert report.rows == ROWS and str(report.path) == dest
    names = [entry.name for entry in UrlPlace(dest).entries()] if format in FOLDERS else []
    assert not any(name.startswith(".") for name in names)
    assert detect_format(dest) == {"npz": "numpy"}.get(format, format)
    back = write_dataset(ds.store, "back", open_source(dest)).to_arrow()
    expected = made.to_arrow()
    if format in ("jsonl", "csv"):
        assert back["text"].to_pylist() == expected["text"].to_pylist()
        assert back["label"].to_pylist() == ["abc"[label] for label in expected["label"].to_pylist()]
    else:
        assert back.schema.equals(expected.schema, check_metadata=True)
        assert back.equals(expected)
    with pytest.raises(BadInput, match="exists"):
        export_dataset(made, dest, format)
    assert export_dataset(made, dest, format, overwrite=True).rows == ROWS


def test_images_go_to_a_url_as_a_folder(ds: Dataset, url: str) -> None:
    report = export_dataset(ds, f"{url}/photos", "folder")
    assert report.files == ROWS
    assert [entry.name for entry in UrlPlace(f"{url}/photos").entries() if entry.is_folder] == ["a", "b", "c"]
    row = ds.to_arrow().slice(7, 1).to_pylist()[0]
    assert UrlPlace(f"{url}/photos/{'abc'[row['label']]}/000007.jpg").read_bytes() == row["image"]
    assert detect_format(f"{url}/photos") == "image-folder"
    back = write_dataset(ds.store, "back", open_source(f"{url}/photos")).to_arrow()
    expected = sorted(zip(ds.to_arrow()["label"].to_pylist(), ds.to_arrow()["image"].to_pylist(), strict=True))
    assert sorted(zip(back["label"].to_pylist(), back["image"].to_pylist(), strict=True)) == expected
    with UrlPlace(f"{url}/photos/a/empty.png").creating():
        pass
    with pytest.raises(SourceError, match=r"empty\.png is empty"):
        open_source(f"{url}/photos")


def test_an_interrupted_export_to_a_url_goes_on(ds: Dataset, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXPORT_SHARD_BYTES", 40_000)

    class Interrupted(Exception):
        pass

    calls = 0

    def progress(rows: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        export_dataset(ds, f"{url}/mds", "mds", progress)
    there = [entry.name for entry in UrlPlace(f"{url}/mds").entries()]
    assert there == [".lepton-export.json", "shard.00000.mds", "shard.00001.mds"]
    written: list[int] = []
    export_dataset(ds, f"{url}/mds", "mds", written.append)
    assert written[0] > 0 and sum(written) == ROWS, "the first report is what was there already"
    assert write_dataset(ds.store, "back", open_source(f"{url}/mds")).to_arrow().equals(ds.to_arrow())


def test_a_large_object_is_uploaded_in_parts_and_read_in_ranges(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).bytes(20_000_000)
    place = UrlPlace(f"{bucket_url}/large")
    with place.creating() as file:
        for at in range(0, len(data), 1_000_003):
            file.write(data[at : at + 1_000_003])
    assert place.stat().st_size == len(data)
    with place.open() as file:
        assert file.read(10) == data[:10]
        file.seek(-10, 2)
        assert file.read() == data[-10:]
        file.seek(0)
        assert file.read() == data
    with pytest.raises(RuntimeError, match="stop"), (place.parent / "half").creating() as file:
        file.write(data)
        raise RuntimeError("stop")
    assert [entry.name for entry in place.parent.entries()] == ["large"], "an upload that failed leaves no object"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A plain HTTP server without ranges, as `python -m http.server` is one."""
    root = tmp_path / "web"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_are_read_over_http(ds: Dataset, web: tuple[str, Path]) -> None:
    url, root = web
    export_dataset(ds, root / "t.jsonl")
    export_dataset(ds.select(range(200)), root / "tars", "webdataset")
    found = write_dataset(ds.store, "lines", open_source(f"{url}/t.jsonl?token=secret"))
    assert found.to_arrow(["text"]).equals(ds.to_arrow(["text"]))
    assert "secret" not in str(found.commit_object.lineage)
    tars = write_dataset(ds.store, "tars", open_source(url + "/tars/shard-{000000..000000}.tar"))
    assert tars.to_arrow().equals(ds.to_arrow().slice(0, 200))
    with pytest.raises(SourceError, match="no such file"):
        open_source(f"{url}/nothing.jsonl")


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("nobody://x/t.parquet", BadInput, "nobody knows nobody://"),
        ("memory://nothing/t.parquet", SourceError, "no such file or directory: memory://nothing/t.parquet"),
        ("s3://key:secret@bucket/x", BadInput, "credentials and endpoints come from the environment"),
        ("memory://a/../b.csv", BadInput, "no parts"),
        ("http://[bad/x.csv", BadInput, "is no URL"),
        ("http://127.0.0.1:9/x.csv", TierUnavailable, "cannot be reached"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(name: str, error: type[LeptonError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        open_source(name)
    assert "secret" not in str(caught.value)


def test_a_filesystem_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(url: str) -> Any:
        raise ImportError("install it", name="paramiko")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacking)
    with pytest.raises(MissingExtra, match="paramiko"):
        open_source("sftp://host/t.csv")


def test_a_bucket_that_is_not_there(s3_server: Any, bucket_url: str) -> None:
    for url in ("s3://nosuchbucket-at-all/t.parquet", f"{bucket_url}/nothing.parquet"):
        with pytest.raises(LeptonError, match=r"no such"):
            open_source(url)


def test_what_needs_a_path_says_so(ds: Dataset, memory_url: str) -> None:
    with pytest.raises(BadInput, match="directories of this machine"):
        open_source(memory_url, "files")
    with pytest.raises(BadInput, match="only a directory of files"):
        export_dataset(ds, memory_url, "files")


def test_a_damaged_object_leaves_the_branch_as_it_was(ds: Dataset, url: str, tmp_path: Path) -> None:
    pq.write_table(MIXED.select(["text"]), tmp_path / "t.parquet", row_group_size=20)
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[2_000:2_400] = bytes(400)
    with UrlPlace(f"{url}/t.parquet").creating() as file:
        file.write(data)
    before = dict(ds.store.state.refs)
    with pytest.raises(SourceError, match=r"t\.parquet"):
        write_dataset(ds.store, "t", open_source(f"{url}/t.parquet"))
    ds.store.refresh()
    assert ds.store.state.refs == before


def test_a_file_inside_of_an_archive_is_a_chained_url(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/t.csv", "x,y\n1,2\n")
    source = open_source(f"zip://in/t.csv::{tmp_path}/a.zip")
    assert source.lineage["files"][0]["name"] == "t.csv"
    assert [batch.to_pydict() for batch in source.batches()] == [{"x": [1], "y": [2]}]
    assert open_source(f"zip://in/t.csv::file://{tmp_path}/a.zip").schema.names == ["x", "y"]
    with pytest.raises(SourceError, match="no such file"):
        open_source(f"zip://in/no.csv::{tmp_path}/a.zip")


def test_places() -> None:
    assert isinstance(place_of("a/b"), Path) and place_of("file:///a/b%20c") == Path("/a/b c")
    place = place_of("https://user:password@host/a/b.tar.gz?X-Signature=secret")
    assert str(place) == "https://host/a/b.tar.gz" and place.name == "b.tar.gz" and place.suffix == ".gz"
    assert str(place.parent / "c") == "https://host/a/c"
    assert set(FILES) | set(FOLDERS) | {"folder", "files"} == set(FORMATS)
