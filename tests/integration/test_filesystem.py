"""lepton:// paths: pandas, pyarrow, polars, DuckDB and fsspec itself read a version in place."""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset, write_files
from leptonstore.dataset.filesystem import LeptonFileSystem
from leptonstore.dataset.importers import open_source
from leptonstore.errors import BadInput, NotPermitted
from leptonstore.store import Store

Make = Callable[..., Source]
ROWS = 20_000
TABLE = pa.table(
    {
        "id": np.arange(ROWS),
        "label": pa.array(np.arange(ROWS) % 7, pa.uint8()),
        "text": [None if at % 9 == 0 else f"row {at} of many" for at in range(ROWS)],
    }
)


@pytest.fixture(autouse=True)
def _no_instances() -> None:
    """fsspec keeps filesystems by their options; each test has a store of its own."""
    LeptonFileSystem.clear_instance_cache()


@pytest.fixture
def url(store: Store, source_of: Make) -> str:
    """lepton://<store>"""
    write_dataset(store, "d", source_of(TABLE, ("id",)))
    return f"lepton://{store.url}"


def _only_part(url: str) -> str:
    fs, path = fsspec.url_to_fs(f"{url}/d@main/data")
    (part,) = fs.ls(path, detail=False)
    return str(part)


def test_a_store_is_a_directory_of_versions(store: Store, source_of: Make, url: str) -> None:
    write_dataset(store, "d", source_of(TABLE.slice(0, 10), ("id",)), branch="small", parents=())
    write_files(store, "model", "m", [("weights/a.bin", b"abc"), ("card.md", b"#")], {})
    fs, root = fsspec.url_to_fs(url)
    assert isinstance(fs, LeptonFileSystem)
    assert [name.rpartition("/")[2] for name in fs.ls(root, detail=False)] == ["d@main", "d@small", "model:m@main"]
    assert fs.isdir(f"{root}/d@main") and fs.ls(f"{root}/d@main", detail=False) == [f"{root}/d@main/data"]
    commit = Dataset.open(store, "d").commit
    part = f"{root}/d@main/data/part-00000-{commit[:8]}.parquet"
    assert fs.find(root, maxdepth=3)[0] == part and fs.isfile(part) and fs.size(part) > 0
    assert fs.glob(f"{root}/d@*/data/*.parquet")[0] == part and len(fs.glob(f"{root}/d@*/data/*.parquet")) == 2
    assert fs.find(f"{root}/model:m@main") == [f"{root}/model:m@main/card.md", f"{root}/model:m@main/weights/a.bin"]
    assert fs.cat(f"{root}/model:m@main/weights/a.bin") == b"abc"
    assert fs.exists(f"{root}/d@{commit[:10]}/data") and not fs.exists(f"{root}/d@nope")
    for missing in ("d@nope/data", "d@main/nope", f"d@main/data/part-00001-{commit[:8]}.parquet", "x@main"):
        with pytest.raises(FileNotFoundError):
            fs.info(f"{root}/{missing}")
    with pytest.raises(FileNotFoundError, match="create a store with"):
        fs.ls(f"{root}/nowhere")


def test_a_name_without_its_ref_is_told_how_to_be_written(url: str) -> None:
    """pandas and pyarrow pass on what is said: a FileNotFoundError would arrive as the bare path."""
    pandas = pytest.importorskip("pandas")
    with pytest.raises(OSError, match="d@main"):
        pandas.read_parquet(f"{url}/d")
    fs, root = fsspec.url_to_fs(url)
    assert not fs.exists(f"{root}/d") and not fs.isdir(f"{root}/d")
    with pytest.raises(IsADirectoryError, match=r"data/\*.parquet"):
        fs.open(f"{root}/d@main")


def test_pandas_reads_it(url: str) -> None:
    pandas = pytest.importorskip("pandas")
    wanted = TABLE.to_pandas()
    pandas.testing.assert_frame_equal(pandas.read_parquet(f"{url}/d@main"), wanted)
    pandas.testing.assert_frame_equal(pandas.read_parquet(f"{url}/d@main/data", columns=["label"]), wanted[["label"]])
    pandas.testing.assert_frame_equal(pandas.read_parquet(f"lepton://{_only_part(url)}"), wanted)
    found = pandas.read_parquet(
        "lepton://d", storage_options={"store": url.removeprefix("lepton://")}, filters=[("id", "<", 3)]
    )
    assert found["id"].tolist() == [0, 1, 2]


def test_pyarrow_reads_it_and_only_what_it_needs(url: str) -> None:
    fs, path = fsspec.url_to_fs(f"{url}/d@main/data")
    found = pads.dataset(path, filesystem=fs, format="parquet")
    assert found.schema.equals(TABLE.schema) and found.to_table().equals(TABLE)
    assert pq.read_table(path, filesystem=fs, columns=["text"]).equals(TABLE.select(["text"]))
    assert pads.dataset(f"fsspec+{url}/d@main/data").count_rows() == ROWS, "pyarrow's own way to name an fsspec URL"
    LeptonFileSystem.clear_instance_cache()
    fresh, _ = fsspec.url_to_fs(url)
    expression = (pc.field("id") >= 12_000) & (pc.field("id") < 12_010)
    assert pads.dataset(path, filesystem=fresh, format="parquet").to_table(["label"], filter=expression).num_rows == 10
    (mounted,) = [fresh._mounts.get(key) for key in fresh._mounts._values]
    assert mounted._ds.pages.reads == 2, "one page of `id` and one of `label`: the footer's bounds prune the rest"


def test_duckdb_and_polars_read_it(url: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("lepton"))
        found = connection.sql(
            f"select count(*), sum(id), count(text) from read_parquet('{url}/d@main/data/*.parquet')"
        )
        assert found.fetchall() == [
            (ROWS, ROWS * (ROWS - 1) // 2, TABLE.column("text").length() - TABLE.column("text").null_count)
        ]
        one = connection.sql(f"select text from 'lepton://{_only_part(url)}' where id = 17")
        assert one.fetchall() == [("row 17 of many",)]
    polars = pytest.importorskip("polars")
    with fsspec.open(f"lepton://{_only_part(url)}") as file:
        assert polars.read_parquet(file)["label"].sum() == int(pc.sum(TABLE.column("label")).as_py())


def test_a_listing_stays_readable_when_the_branch_moves(store: Store, source_of: Make, url: str) -> None:
    part = _only_part(url)
    fs, _ = fsspec.url_to_fs(url)
    before = fs.cat(part)
    with fs.open(part) as held:
        write_dataset(Store.open(store.url), "d", source_of(TABLE.slice(0, 5), ("id",)), "shorter")
        assert held.read() == before
    assert fs.cat(part) == before, "its name says which version it is of"
    new = _only_part(url)
    assert new != part and pq.read_table(new, filesystem=fs).num_rows == 5, "a branch is looked up anew"


def test_a_version_of_many_row_groups_is_many_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARQUET_GROUPS_MAX", 2)
    fs, path = fsspec.url_to_fs(f"{url}/d@main/data")
    parts = fs.ls(path)
    assert len(parts) > 1 and [part["name"][-20:-17] for part in parts] != []
    assert sum(pq.read_metadata(part["name"], filesystem=fs).num_rows for part in parts) == ROWS
    assert pads.dataset(path, filesystem=fs, format="parquet").to_table().equals(TABLE)


def test_a_directory_of_files(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "src"
    (source / "a" / "b").mkdir(parents=True)
    large = np.random.default_rng(0).bytes(9 << 20)
    contents = {"x.txt": b"hello\nworld\n", "a/empty": b"", "a/b/large.bin": large, "a/b/mid": b"m" * 10_000}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    os.symlink("b/mid", source / "a" / "link")
    os.symlink("a", source / "folder")
    os.symlink("/etc/passwd", source / "out")
    os.symlink("loop", source / "loop")
    write_dataset(store, "t", open_source(source, "files"))
    url = f"lepton://{store.url}/t@main"
    with fsspec.open(f"{url}/x.txt", "rt") as file:
        assert file.read().splitlines() == ["hello", "world"]
    fs, root = fsspec.url_to_fs(url)
    for name, data in contents.items():
        assert fs.cat(f"{root}/{name}") == data and fs.size(f"{root}/{name}") == len(data)
    for start, end in [(0, 10), (4 << 20, (4 << 20) + 3), (len(large) - 5, len(large)), (-7, None), (5, 2)]:
        assert fs.cat_file(f"{root}/a/b/large.bin", start, end) == large[start:end]
    with fs.open(f"{root}/a/b/large.bin") as file:
        file.seek(3 << 20)
        assert file.read(1 << 20) == large[3 << 20 : 4 << 20]
    assert fs.cat(f"{root}/a/link") == fs.cat(f"{root}/folder/b/mid") == contents["a/b/mid"]
    assert [name.removeprefix(root + "/") for name in fs.ls(root, detail=False)] == ["a", "folder", "x.txt"]
    for hidden in ("out", "loop", "../t@main/x.txt", "x.txt/y"):
        assert not fs.exists(f"{root}/{hidden}")
    with pytest.raises(IsADirectoryError):
        fs.open(f"{root}/a")


def test_reading_a_range_of_a_large_file_reads_its_pieces(tmp_path: Path, store: Store) -> None:
    (tmp_path / "src").mkdir()
    data = np.random.default_rng(0).bytes(12 << 20)
    (tmp_path / "src" / "large").write_bytes(data)
    write_dataset(store, "t", open_source(tmp_path / "src", "files"))
    store.flush()
    fs, root = fsspec.url_to_fs(f"lepton://{store.url}/t@main")
    opened = fs._opened(store.url)
    asked: list[bytes] = []
    get = opened.get
    opened.get = lambda digest: (asked.append(digest), get(digest))[1]  # type: ignore[method-assign]
    pieces = Dataset.open(store, "t")
    with fs.open(f"{root}/large") as file:
        asked.clear()
        file.seek(6 << 20)
        assert file.read(100) == data[6 << 20 : (6 << 20) + 100]
        assert 1 <= len(asked) <= 2 and len(pieces) == 2


def test_nothing_can_be_written_and_mistakes_are_named(store: Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, root = fsspec.url_to_fs(url)
    refused: list[Callable[[], Any]] = [
        lambda: fs.open(f"{root}/d@main/new", "wb"),
        lambda: fs.rm(f"{root}/d@main", recursive=True),
        lambda: fs.mkdir(f"{root}/x"),
        lambda: fs.pipe_file(f"{root}/x", b""),
        lambda: fs.mv(f"{root}/d@main", f"{root}/e@main"),
    ]
    for refuse in refused:
        with pytest.raises(NotPermitted):
            refuse()
    monkeypatch.setenv("LEPTON_STORE", store.url)
    with pytest.raises(BadInput, match="names no store"):
        fsspec.filesystem("lepton").ls("d@main")
    with pytest.raises(BadInput, match="the kinds are"):
        fs.info(f"{root}/cat:d@main")
    again = pickle.loads(pickle.dumps(fs))  # noqa: S301 - our own object
    assert again.ls(root, detail=False) == fs.ls(root, detail=False)


def test_a_store_with_odd_characters_in_its_path(tmp_path: Path, source_of: Make) -> None:
    with Store.create(tmp_path / "me@home 100%") as odd:
        write_dataset(odd, "d", source_of(TABLE.slice(0, 3), ("id",)))
        quoted = odd.url.replace("%", "%25").replace("@", "%40")
        fs, path = fsspec.url_to_fs(f"lepton://{quoted}/d@main/data")
        assert pads.dataset(path, filesystem=fs, format="parquet").count_rows() == 3
        whole = "lepton://" + odd.url.replace("%", "%25").replace("@", "%40").replace("/", "%2F") + "/d@main"
        assert fsspec.url_to_fs(whole)[0].exists(whole)


def test_a_store_at_a_url(source_of: Make) -> None:
    url = f"memory://lepton-filesystem-test-{secrets.token_hex(8)}"  # of this process, in which the test runs more than once
    with Store.create(url) as remote:
        write_dataset(remote, "d", source_of(TABLE, ("id",)))
        fs, path = fsspec.url_to_fs(f"lepton://{url}/d@main")
        assert pads.dataset(path, filesystem=fs, format="parquet").to_table().equals(TABLE)
