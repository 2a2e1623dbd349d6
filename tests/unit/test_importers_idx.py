"""IDX import: what the files hold arrives, and every way in which a file can be wrong is one clear SourceError."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.dataset.importers import detect_format, open_source
from leptonstore.dataset.schema import class_names, semantic_of, tensor_shape
from leptonstore.dataset.source import Source
from leptonstore.errors import SourceError

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(values: np.ndarray) -> bytes:
    head = bytes([0, 0, CODES[values.dtype.name], values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write(path: Path, values: np.ndarray) -> Path:
    data = idx_bytes(values)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def images(rows: int, shape: tuple[int, ...] = (3, 4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)


def labels(rows: int, classes: int = 10) -> np.ndarray:
    return (np.arange(rows) % classes).astype(np.uint8)


def table(source: Source) -> pa.Table:
    batches = list(source.batches())
    assert all(batch.schema.equals(source.schema, check_metadata=True) for batch in batches)
    return pa.Table.from_batches(batches, source.schema)


def tensors(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().to_numpy_ndarray()


def mnist_like(folder: Path, suffix: str = "", train: int = 7, test: int = 5) -> tuple[np.ndarray, np.ndarray]:
    one, two = images(train, seed=1), images(test, seed=2)
    write(folder / f"train-images-idx3-ubyte{suffix}", one)
    write(folder / f"train-labels-idx1-ubyte{suffix}", labels(train, 4))
    write(folder / f"t10k-images-idx3-ubyte{suffix}", two)
    write(folder / f"t10k-labels-idx1-ubyte{suffix}", labels(test, 5))
    return one, two


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_directory_like_mnists_is_one_table_train_rows_first(tmp_path: Path, suffix: str) -> None:
    one, two = mnist_like(tmp_path, suffix)
    source = open_source(tmp_path)
    assert source.schema.names == ["image", "label", "split"]
    assert source.identity == ("image",)
    assert source.rows == 12
    assert tensor_shape(source.schema.field("image")) == (3, 4)
    assert semantic_of(source.schema.field("image")) == "image"
    assert class_names(source.schema.field("label")) == ["0", "1", "2", "3", "4"]
    assert class_names(source.schema.field("split")) == ["train", "test"]
    rows = table(source)
    assert np.array_equal(tensors(rows["image"]), np.concatenate([one, two]))
    assert rows["label"].to_pylist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]
    assert rows["split"].to_pylist() == [0] * 7 + [1] * 5


def test_the_lineage_names_files_but_no_directory_of_this_machine(tmp_path: Path) -> None:
    mnist_like(tmp_path)
    lineage = open_source(tmp_path).lineage
    assert lineage["format"] == "idx"
    assert [file["name"] for file in lineage["files"]] == [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ]
    assert str(tmp_path) not in str(lineage)


def test_a_stream_can_be_started_again_and_is_the_same(tmp_path: Path) -> None:
    mnist_like(tmp_path, ".gz")
    source = open_source(tmp_path)
    assert table(source).equals(table(source))


def test_batches_are_bounded_and_cover_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IMPORT_BATCH_ROWS_MAX", 4)
    all_images = images(11)
    write(tmp_path / "images.idx", all_images)
    write(tmp_path / "labels.idx", labels(11))
    source = open_source(tmp_path / "images.idx")
    assert [batch.num_rows for batch in source.batches()] == [4, 4, 3]
    assert np.array_equal(tensors(table(source)["image"]), all_images)


def test_an_images_file_takes_the_labels_beside_it(tmp_path: Path) -> None:
    mnist_like(tmp_path, ".gz")
    source = open_source(tmp_path / "t10k-images-idx3-ubyte.gz")
    assert source.schema.names == ["image", "label"]
    assert table(source)["label"].to_pylist() == [0, 1, 2, 3, 4]


def test_labels_may_be_named(tmp_path: Path) -> None:
    pictures = write(tmp_path / "pictures.idx", images(3))
    other = write(tmp_path / "answers.idx", labels(3))
    assert open_source(pictures).schema.names == ["image"]
    assert open_source(pictures, labels=other).schema.names == ["image", "label"]


def test_images_alone_and_one_split_alone_have_no_split_column(tmp_path: Path) -> None:
    write(tmp_path / "train-images-idx3-ubyte", images(3))
    assert open_source(tmp_path).schema.names == ["image"]
    write(tmp_path / "train-labels-idx1-ubyte", labels(3))
    assert open_source(tmp_path).schema.names == ["image", "label"]


def test_packed_and_unpacked_copies_count_once(tmp_path: Path) -> None:
    mnist_like(tmp_path)
    mnist_like(tmp_path, ".gz")
    source = open_source(tmp_path)
    assert source.rows == 12
    assert not any(file["name"].endswith(".gz") for file in source.lineage["files"])


@pytest.mark.parametrize("names", ["images.idx3-ubyte labels.idx1-ubyte", "x-images-idx3-ubyte x-labels-idx1-ubyte"])
def test_other_spellings_of_the_names(tmp_path: Path, names: str) -> None:
    first, second = names.split()
    write(tmp_path / first, images(3))
    write(tmp_path / second, labels(3))
    assert detect_format(tmp_path) == "idx"
    assert open_source(tmp_path).schema.names == ["image", "label"]


@pytest.mark.parametrize("name", sorted(CODES))
def test_every_value_type_arrives_in_native_byte_order(tmp_path: Path, name: str) -> None:
    values = np.arange(12).reshape(2, 2, 3).astype(name)
    source = open_source(write(tmp_path / "some.idx", values))
    field = source.schema.field("image")
    assert field.type.value_type == pa.from_numpy_dtype(np.dtype(name))
    assert semantic_of(field) == ("image" if name == "uint8" else "")
    assert np.array_equal(tensors(table(source)["image"]), values)


def test_colour_is_an_image_and_a_vector_is_not(tmp_path: Path) -> None:
    colour = open_source(write(tmp_path / "colour.idx", images(2, (4, 4, 3))))
    vector = open_source(write(tmp_path / "vector.idx", images(2, (9,))))
    assert semantic_of(colour.schema.field("image")) == "image"
    assert semantic_of(vector.schema.field("image")) == ""


def test_a_packed_file_is_known_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    plain = tmp_path / "images-idx3-ubyte.gz"  # what a browser leaves that unpacks downloads
    plain.write_bytes(idx_bytes(images(2)))
    assert open_source(plain).rows == 2


# -- wrong files -------------------------------------------------------------------------------------------------

GOOD = idx_bytes(images(5))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\0\0\x0a" + GOOD[3:], "value type 0x0a"),
        (b"\0\0\x08\0" + GOOD[4:], "announces 0 dimensions"),
        (b"\0\0\x08\x09" + bytes(100), "announces 9 dimensions"),
        (GOOD[:9], "ends inside its header"),
        (GOOD[:-1], "shorter than its header says"),
        (GOOD + b"x", "longer than its header says"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 0, 3, 4), "holds no values"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 5, 0, 4), "holds no values"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "announces rows of"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, data: bytes, why: str, packed: bool) -> None:
    path = tmp_path / "bad-images-idx3-ubyte"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(SourceError, match=why) as caught:
        list(open_source(path).batches())
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)


def test_a_plain_file_of_wrong_length_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "images.idx"
    path.write_bytes(GOOD[:-1])
    with pytest.raises(SourceError, match="bytes instead of"):
        open_source(path)


@pytest.mark.parametrize("keep", [5, 20, -9, -1])
def test_a_truncated_gzip_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "images.idx.gz"
    path.write_bytes(gzip.compress(GOOD)[:keep])
    with pytest.raises(SourceError, match=r"truncated gzip|damaged gzip"):
        list(open_source(path).batches())


@pytest.mark.parametrize("at", [3, 30, -6])
def test_a_damaged_gzip_file(tmp_path: Path, at: int) -> None:
    data = bytearray(gzip.compress(idx_bytes(images(200))))
    data[at] ^= 0xFF
    path = tmp_path / "images.idx.gz"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=str(path)):
        list(open_source(path).batches())


def test_no_more_is_unpacked_than_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb: 64 MiB of zeros behind a header that announces 60 bytes."""
    path = tmp_path / "images.idx.gz"
    path.write_bytes(gzip.compress(GOOD[:16] + bytes(64 << 20)))
    unpacked = 0
    read = gzip.GzipFile.read

    def counting(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal unpacked
        data = read(self, size)
        unpacked += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    with pytest.raises(SourceError, match="longer than its header says"):
        list(open_source(path).batches())
    assert unpacked <= 3 * 16 + 60 + 1  # the header: when it is opened, checked again, and skipped


def test_counts_of_images_and_labels_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "train-images-idx3-ubyte", images(3))
    write(tmp_path / "train-labels-idx1-ubyte", labels(4))
    with pytest.raises(SourceError, match="4 labels for the 3 images"):
        open_source(tmp_path)


def test_labels_are_one_small_natural_number_a_row(tmp_path: Path) -> None:
    pictures = write(tmp_path / "images.idx", images(3))
    for values, why in (
        (np.zeros((3, 2), np.uint8), "one integer a row"),
        (np.zeros(3, np.float32), "one integer a row"),
        (np.array([0, -1, 2], np.int32), "holds the label -1"),
        (np.array([0, 1, 1 << 20], np.int32), "holds the label 1048576"),
    ):
        with pytest.raises(SourceError, match=why):
            open_source(pictures, labels=write(tmp_path / "l.idx", values))


def test_many_classes_do_not_wrap(tmp_path: Path) -> None:
    pictures = write(tmp_path / "images.idx", images(2))
    source = open_source(pictures, labels=write(tmp_path / "l.idx", np.array([0, 300], np.int16)))
    assert table(source)["label"].to_pylist() == [0, 300]


def test_labels_without_images_and_images_in_their_place(tmp_path: Path) -> None:
    alone = write(tmp_path / "train-labels-idx1-ubyte", labels(3))
    with pytest.raises(SourceError, match="has no images"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="holds labels"):
        open_source(alone)
    with pytest.raises(SourceError, match="one number a row"):
        open_source(write(tmp_path / "vector.idx", labels(3)))


def test_several_data_sets_in_a_directory_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("letters", "digits"):
        write(tmp_path / f"{name}-train-images-idx3-ubyte", images(3))
    with pytest.raises(SourceError, match="several data sets"):
        open_source(tmp_path)


def test_splits_must_be_alike(tmp_path: Path) -> None:
    write(tmp_path / "train-images-idx3-ubyte", images(3))
    write(tmp_path / "t10k-images-idx3-ubyte", images(3, (5, 5)))
    with pytest.raises(SourceError, match="import them one by one"):
        open_source(tmp_path)
    write(tmp_path / "t10k-images-idx3-ubyte", images(3))
    write(tmp_path / "t10k-labels-idx1-ubyte", labels(3))
    with pytest.raises(SourceError, match="has no labels"):
        open_source(tmp_path)


def test_a_file_that_changes_between_opening_and_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "images.idx", images(3))
    source = open_source(path)
    write(path, images(4))
    with pytest.raises(SourceError, match="changed while it was read"):
        list(source.batches())


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "images.idx")
    with pytest.raises(SourceError, match="not a regular file"):
        open_source(tmp_path / "images.idx")


def test_a_directory_without_idx_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no IDX files"):
        open_source(tmp_path, "idx")
