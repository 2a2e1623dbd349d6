"""Through a real store: what was imported comes out again, and importing it again adds nothing."""

from __future__ import annotations

import os
import struct
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, write_dataset, write_files
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.errors import BadInput
from leptonstore.store import Store


def image_folder(root: Path) -> Path:
    """Small files and ones that are chunks of their own; bytes that are no images, for import does not look."""
    random = np.random.default_rng(0)
    for index, size in enumerate((1, 100, 5_000, 20_000, 300_000, 17_000)):
        path = root / ("train" if index < 4 else "test") / ("cat" if index % 2 else "dog") / f"é {index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.bytes(size))
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def idx_files(root: Path, train: int, test: int) -> np.ndarray:
    random = np.random.default_rng(1)
    root.mkdir()
    images = random.integers(0, 256, (train + test, 8, 8), dtype=np.uint8)
    for name, part in (("train", slice(0, train)), ("t10k", slice(train, None))):
        count = len(images[part])
        header = b"\0\0\x08\x03" + struct.pack(">3I", count, 8, 8)
        (root / f"{name}-images-idx3-ubyte").write_bytes(header + images[part].tobytes())
        labels = (np.arange(count) % 3).astype(np.uint8)
        (root / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", count) + labels.tobytes())
    return images


def test_an_image_folder_comes_back_byte_for_byte(store: Store, tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in")
    ds = write_dataset(store, "pets", open_source(source))
    report = export_dataset(ds, tmp_path / "out", progress=lambda rows: None)
    assert tree(tmp_path / "out") == tree(source)
    assert (report.rows, report.bytes) == (6, sum(map(len, tree(source).values())))


def test_a_view_exports_its_rows_only(store: Store, tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in")
    ds = write_dataset(store, "pets", open_source(source))
    export_dataset(ds.split("test"), tmp_path / "out")
    assert tree(tmp_path / "out") == {path: data for path, data in tree(source).items() if path.startswith("test/")}


def test_importing_again_is_the_same_commit_and_adds_nothing(store: Store, tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in")
    first = write_dataset(store, "pets", open_source(source))
    new_bytes = store.new_bytes
    assert write_dataset(store, "pets", open_source(source)).commit == first.commit
    assert store.new_bytes == new_bytes


def test_equal_idx_files_are_one_commit_wherever_they_lie(store: Store, tmp_path: Path) -> None:
    for folder in ("here", "there"):
        idx_files(tmp_path / folder, 5, 3)
    first = write_dataset(store, "a", open_source(tmp_path / "here"))
    assert write_dataset(store, "b", open_source(tmp_path / "there")).commit == first.commit


def test_idx_of_several_batches_and_row_groups(store: Store, tmp_path: Path) -> None:
    images = idx_files(tmp_path / "idx", 9_000, 1_000)
    write_dataset(store, "digits", open_source(tmp_path / "idx"))
    ds = Dataset.open(store, "digits")
    table = ds.to_arrow()
    assert np.array_equal(table["image"].combine_chunks().to_numpy_ndarray(), images)
    assert ds.splits() == ["train", "test"]
    assert len(ds.split("train")) == 9_000
    report = export_dataset(ds, tmp_path / "t.parquet")
    assert report.rows == 10_000
    back = write_dataset(store, "again", open_source(tmp_path / "t.parquet", identity="image"))
    assert back.schema.equals(ds.schema, check_metadata=True)
    assert back.commit_object.root == ds.commit_object.root  # rows, schema and identity are equal: one tree


def test_decoded_images_go_out_as_png_and_come_back(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    images = idx_files(tmp_path / "idx", 6, 3)
    ds = write_dataset(store, "digits", open_source(tmp_path / "idx"))
    export_dataset(ds, tmp_path / "out")
    back = write_dataset(store, "folder", open_source(tmp_path / "out"))
    assert sorted(back.splits()) == ["test", "train"]
    assert len(back) == len(images)
    assert set(back.to_arrow(["path"])["path"].to_pylist()) == set(tree(tmp_path / "out"))


def test_csv_in_and_out(store: Store, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,word\n1,"a ""b"", c"\n2,é\n')
    ds = write_dataset(store, "words", open_source(tmp_path / "in.csv", key="id"))
    assert ds.identity == ("id",)
    export_dataset(ds, tmp_path / "out.csv")
    again = write_dataset(store, "again", open_source(tmp_path / "out.csv", key="id"))
    assert again.commit_object.root == ds.commit_object.root


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_rows(store: Store, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in.csv").write_text("id,word\n")
    ds = write_dataset(store, "empty", open_source(tmp_path / "in.csv"))
    assert export_dataset(ds, tmp_path / f"out{suffix}").rows == 0
    again = write_dataset(store, "again", open_source(tmp_path / f"out{suffix}"))
    assert again.schema.equals(ds.schema, check_metadata=True)


def test_files_of_a_checkpoint(store: Store, tmp_path: Path) -> None:
    files = {"weights.bin": os.urandom(100_000), "meta/info.json": b"{}"}
    table = write_files(store, "checkpoint", "run", files.items(), {"made": "by a test"})
    report = export_dataset(table, tmp_path / "out")
    assert tree(tmp_path / "out") == files
    assert report.files == 2
    hostile = write_files(store, "checkpoint", "hostile", [("../escaped", b"x")], {})
    with pytest.raises(BadInput, match=r"\.\./escaped"):
        export_dataset(hostile, tmp_path / "out2")
    assert not (tmp_path / "escaped").exists()


def test_types_of_parquet_survive(store: Store, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = pa.table(
        {
            "id": pa.array([2, 1, 3], pa.uint16()),
            "half": pa.array([0.5, None, -1], pa.float16()),
            "when": pa.array([1, None, 3], pa.timestamp("us", "UTC")),
            "money": pa.array([Decimal("1.25"), None, Decimal(-3)], pa.decimal128(20, 2)),
            "words": pa.array([["a"], None, []], pa.list_(pa.string())),
            "point": pa.array([{"x": 1, "y": None}, None, {"x": 0, "y": "z"}]),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
        }
    )
    pq.write_table(rows, tmp_path / "in.parquet")
    ds = write_dataset(store, "t", open_source(tmp_path / "in.parquet", identity="id"))
    assert ds.to_arrow().to_pylist() == rows.to_pylist()
    export_dataset(ds, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows.to_pylist()
