"""open_source: what a path holds decides its format; what cannot be opened is said in one line."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leptonstore.dataset.importers import FORMATS, detect_format, open_source
from leptonstore.dataset.schema import class_names, semantic_of
from leptonstore.errors import BadInput, MissingExtra, SourceError
from tests.permissions import of_an_ordinary_user


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("train-images-idx3-ubyte", "idx"),
        ("train-images-idx3-ubyte.gz", "idx"),
        ("train-images.idx3-ubyte", "idx"),
        ("some.idx", "idx"),
        ("qmnist-train-labels-idx2-int.gz", "idx"),
        ("t.parquet", "parquet"),
        ("T.PARQUET", "parquet"),
        ("t.csv", "csv"),
        ("t.csv.gz", "csv"),
        ("t.jsonl", "jsonl"),
        ("t.ndjson.gz", "jsonl"),
        ("t.arrow", "arrow"),
        ("t.feather", "arrow"),
        ("t.tar", "webdataset"),
        ("t.tgz", "webdataset"),
        ("t.npy", "numpy"),
        ("t.npz", "numpy"),
        ("t.safetensors", "safetensors"),
    ],
)
def test_a_file_is_known_by_its_name(tmp_path: Path, name: str, format: str) -> None:
    (tmp_path / name).touch()
    assert detect_format(tmp_path / name) == format


def test_a_file_of_another_name_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "table")
    (tmp_path / "images").write_bytes(b"\0\0\x08\x03")
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array")
    with pa.ipc.new_stream(tmp_path / "stream", pa.schema([("x", pa.int8())])):
        pass
    with tarfile.open(tmp_path / "archive", "w") as archive:
        archive.add(tmp_path / "table", "a.bin")
    assert detect_format(tmp_path / "array") == "numpy"
    assert detect_format(tmp_path / "stream") == "arrow"
    assert detect_format(tmp_path / "archive") == "webdataset"
    assert detect_format("shards/a-{000..003}.tar") == "webdataset"
    assert detect_format(tmp_path / "table") == "parquet"
    assert detect_format(tmp_path / "images") == "idx"


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("t10k-images-idx3-ubyte.gz", "idx"),
        ("part-0.parquet", "parquet"),
        ("cat/1.JPG", "image-folder"),
        ("s-0.tar", "webdataset"),
    ],
)
def test_a_directory_is_known_by_what_it_holds(tmp_path: Path, name: str, format: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert detect_format(tmp_path) == format


def test_an_unrecognised_path_lists_the_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(SourceError) as caught:
            open_source(path)
        assert all(name in str(caught.value) for name in FORMATS)


@pytest.mark.parametrize("format", [None, "idx", "parquet"])
def test_a_missing_path(tmp_path: Path, format: str | None) -> None:
    with pytest.raises(SourceError, match=r"no such file or directory: .*nowhere"):
        open_source(tmp_path / "nowhere", format)


def test_a_directory_without_permission(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with of_an_ordinary_user(), pytest.raises(SourceError, match="permission"):
        open_source(closed)


def test_an_unknown_format_and_an_unknown_option(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no import format 'tar'; there are idx"):
        open_source(tmp_path, "tar")
    (tmp_path / "t.csv").write_text("x\n1\n")
    with pytest.raises(BadInput, match=r"has no option 'colour'; its options: key, delimiter, types"):
        open_source(tmp_path / "t.csv", colour="red")


def test_every_format_has_a_module_and_a_line() -> None:
    for entry in FORMATS.values():
        assert "\n" not in entry.description
        __import__(entry.module)


def test_digits() -> None:
    pytest.importorskip("sklearn")
    source = open_source("digits")
    assert source.schema.names == ["image", "label"]
    assert source.rows == 1797
    assert semantic_of(source.schema.field("image")) == "image"
    assert class_names(source.schema.field("label")) == [str(digit) for digit in range(10)]
    (batch,) = source.batches()
    images = batch["image"].to_numpy_ndarray()
    assert images.shape == (1797, 8, 8)
    assert sorted(np.unique(images)) == [round(value * 255 / 16) for value in range(17)]
    assert source.lineage["format"] == "digits"


def test_the_word_digits_is_not_the_path_digits(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="write digits in its place"):
        open_source(tmp_path, "digits")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"leptonstore\[process\]"):
        open_source("digits")
