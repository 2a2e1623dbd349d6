"""Export: what is written reads back as it was, whole or not at all, and never outside of the folder given."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from leptonstore.dataset import confined
from leptonstore.dataset.exporters import ExportReport, common, export_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.schema import class_label_field, image_field, path_field, tensor_field
from leptonstore.dataset.source import Source
from leptonstore.errors import BadInput, MissingExtra, SchemaError, StoreFull

TENSORS = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


class Table:
    """A table in memory in the role of a dataset; `rows` rows a batch."""

    def __init__(self, table: pa.Table, rows: int = 2) -> None:
        self.table = table
        self.rows = rows

    @classmethod
    def of(cls, source: Source) -> Table:
        return cls(pa.Table.from_batches(list(source.batches()), source.schema))

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def __len__(self) -> int:
        return self.table.num_rows

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        position = 0
        for batch in self.table.select(columns or self.table.schema.names).to_batches(self.rows):
            yield position, batch
            position += batch.num_rows


class FileSet:
    """Files in memory in the role of a checkpoint."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def paths(self) -> list[str]:
        return list(self.files)

    def read(self, path: str) -> bytes:
        return self.files[path]


def tensor_table() -> Table:
    schema = pa.schema(
        [
            tensor_field("image", pa.uint8(), (4, 3), "image"),
            class_label_field("label", ["cat", "dog"]),
            class_label_field("split", ["train", "test"]),
        ]
    )
    columns = [
        pa.FixedShapeTensorArray.from_numpy_ndarray(TENSORS),
        pa.array([0, 1, 0, 1, 0], pa.uint8()),
        pa.array([0, 0, 0, 1, 1], pa.uint8()),
    ]
    return Table(pa.table(columns, schema=schema))


def encoded_table(paths: list[str | None], data: list[bytes] | None = None) -> Table:
    schema = pa.schema([pa.field("path", pa.string(), metadata=path_field("path").metadata), image_field("image")])
    images = data or [b"data of %d" % index for index in range(len(paths))]
    return Table(pa.table([pa.array(paths, pa.string()), pa.array(images, pa.large_binary())], schema=schema))


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# -- Parquet and CSV ---------------------------------------------------------------------------------------------


def test_parquet_keeps_everything_and_a_row_group_is_a_batch(tmp_path: Path) -> None:
    ds = tensor_table()
    done: list[int] = []
    report = export_dataset(ds, tmp_path / "new" / "t.parquet", progress=done.append)
    path = tmp_path / "new" / "t.parquet"
    assert report == ExportReport(path, 5, 1, path.stat().st_size)
    assert done == [2, 2, 1]
    back = open_source(path)
    assert back.schema.equals(ds.schema, check_metadata=True)
    assert Table.of(back).table.equals(ds.table)
    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [2, 2, 1]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert os.listdir(path.parent) == ["t.parquet"]


def test_an_empty_table_is_an_empty_file_with_its_schema(tmp_path: Path) -> None:
    ds = Table(tensor_table().table.slice(0, 0))
    export_dataset(ds, tmp_path / "t.parquet")
    assert open_source(tmp_path / "t.parquet").schema.equals(ds.schema, check_metadata=True)


def test_csv_writes_values_and_the_names_of_classes(tmp_path: Path) -> None:
    label = class_label_field("label", ["cat", 'a "dog", big'])
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("word", pa.string()), label.with_nullable(True)])
    rows = pa.table([[1, None, 3], ["x", "é\nf", None], pa.array([1, 0, None], pa.uint8())], schema=schema)
    report = export_dataset(Table(rows), tmp_path / "t.csv")
    assert report.rows == 3
    strings = pacsv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    newlines = pacsv.ParseOptions(newlines_in_values=True)
    back = pacsv.read_csv(tmp_path / "t.csv", parse_options=newlines, convert_options=strings).to_pydict()
    assert back == {"id": [1, None, 3], "word": ["x", "é\nf", None], "label": ['a "dog", big', "cat", None]}


@pytest.mark.parametrize(
    "data_type",
    [
        "bool",
        "int8",
        "uint64",
        "float16",
        "float64",
        "large_string",
        "date32",
        "timestamp[us]",
        "duration[s]",
        "time64",
    ],
)
def test_csv_holds_every_flat_type(tmp_path: Path, data_type: str) -> None:
    kind = {"timestamp[us]": pa.timestamp("us", "UTC"), "duration[s]": pa.duration("s"), "time64": pa.time64("us")}
    arrow = kind.get(data_type) or pa.type_for_alias(data_type)
    value = "1" if pa.types.is_large_string(arrow) else 1
    column = pa.array([value, None]) if arrow == pa.large_string() else pa.array([value, None], pa.int64())
    if arrow != pa.large_string():
        small = pa.int32() if arrow == pa.date32() else pa.int64()
        column = column.cast(small).cast(arrow)
    export_dataset(Table(pa.table({"x": column.cast(arrow)})), tmp_path / "t.csv")
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3


def test_csv_refuses_columns_that_it_cannot_hold_by_name(tmp_path: Path) -> None:
    rows = tensor_table().table
    rows = rows.append_column("raw", pa.array([b""] * 5)).append_column("words", pa.array([["a"]] * 5))
    with pytest.raises(SchemaError, match=r"'image' .*'raw' \(binary\).*'words' \(list"):
        export_dataset(Table(rows), tmp_path / "t.csv")
    assert not os.listdir(tmp_path)


def test_a_label_without_a_name_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = tensor_table().table.drop_columns(["image"])
    rows = rows.set_column(0, rows.schema.field("label"), pa.array([0, 1, 0, 7, 0], pa.uint8()))
    with pytest.raises(BadInput, match="row 3 has the label 7"):
        export_dataset(Table(rows), tmp_path / "t.csv")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_an_interrupted_export_leaves_nothing_and_keeps_what_was(tmp_path: Path, format: str) -> None:
    class Interrupted(Table):
        def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
            yield next(super().iter_batches(columns))
            raise KeyboardInterrupt

    ds = Interrupted(tensor_table().table.drop_columns(["image"]))
    dest = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export_dataset(ds, dest, format)
    assert not os.listdir(tmp_path)
    dest.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        export_dataset(ds, dest, format, overwrite=True)
    assert tree(tmp_path) == {"out": b"old"}


def test_what_exists_is_replaced_only_on_request(tmp_path: Path) -> None:
    ds = tensor_table()
    dest = tmp_path / "t.parquet"
    dest.touch()  # empty: nothing to lose
    export_dataset(ds, dest)
    with pytest.raises(BadInput, match="exists"):
        export_dataset(ds, dest)
    export_dataset(ds, dest, overwrite=True)
    with pytest.raises(BadInput, match="is a folder"):
        export_dataset(ds, tmp_path, "parquet", overwrite=True)


# -- folders -----------------------------------------------------------------------------------------------------


def test_decoded_images_become_png_below_their_split_and_class(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    report = export_dataset(tensor_table(), tmp_path / "out")
    files = tree(tmp_path / "out")
    assert list(files) == [
        "test/cat/000004.png",
        "test/dog/000003.png",
        "train/cat/000000.png",
        "train/cat/000002.png",
        "train/dog/000001.png",
    ]
    assert report == ExportReport(tmp_path / "out", 5, 5, sum(map(len, files.values())))
    for path, data in files.items():
        assert np.array_equal(np.asarray(image.open(io.BytesIO(data))), TENSORS[int(Path(path).stem)])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_survive(tmp_path: Path, channels: int) -> None:
    image = pytest.importorskip("PIL.Image")
    values = np.random.default_rng(0).integers(0, 256, (1, 5, 4, channels), dtype=np.uint8)
    schema = pa.schema([tensor_field("image", pa.uint8(), values.shape[1:], "image")])
    export_dataset(
        Table(pa.table([pa.FixedShapeTensorArray.from_numpy_ndarray(values)], schema=schema)), tmp_path / "o"
    )
    back = np.asarray(image.open(tmp_path / "o" / "000000.png"))
    assert np.array_equal(back.reshape(5, 4, channels), values[0])


def test_an_image_folder_comes_back_byte_for_byte(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for path in ("train/cat/1.JPG", "train/dog/deep/é 1.png", "val/cat/not really.gif"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(os.urandom(100))
    ds = Table.of(open_source(source))
    report = export_dataset(ds, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(source)
    assert (report.files, report.bytes) == (3, 300)
    again = Table.of(open_source(tmp_path / "out"))
    assert again.table.equals(ds.table)


@pytest.mark.parametrize(
    ("codec", "data", "suffix"),
    [
        ("jpeg", b"whatever", ".jpg"),
        ("mixed", b"\x89PNG\r\n", ".png"),
        ("mixed", b"RIFF....WEBP", ".webp"),
        ("mixed", b"?", ".bin"),
    ],
)
def test_encoded_images_without_a_path_are_named_by_row_and_codec(
    tmp_path: Path, codec: str, data: bytes, suffix: str
) -> None:
    rows = pa.table([pa.array([data], pa.large_binary())], schema=pa.schema([image_field("image", codec)]))
    export_dataset(Table(rows), tmp_path / "out")
    assert tree(tmp_path / "out") == {f"000000{suffix}": data}


HOSTILE = [
    "../escaped.png",
    "a/../../escaped.png",
    "a/./b.png",
    "/absolute.png",
    "a//b.png",
    "a/",
    "..",
    ".",
    "",
    "a\0b.png",
    "link/escaped.png",
    "a/link/escaped.png",
]


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("make", [lambda path: encoded_table([path]), lambda path: FileSet({path: b"x"})])
def test_hostile_paths_write_nothing_outside(tmp_path: Path, path: str, make: Callable[[str], Table | FileSet]) -> None:
    dest, outside = tmp_path / "out", tmp_path / "outside"
    (dest / "a").mkdir(parents=True)
    outside.mkdir()
    (dest / "link").symlink_to(outside)
    (dest / "a" / "link").symlink_to(outside)
    with pytest.raises(BadInput):
        export_dataset(make(path), dest, overwrite=True)
    assert tree(outside) == {}
    assert not any(entry.is_file() for entry in tmp_path.rglob("*"))


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.png").symlink_to(victim)
    export_dataset(encoded_table(["1.png"], [b"new"]), tmp_path / "out", overwrite=True)
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "out" / "1.png").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["..", "a/b", "", "/"])
def test_hostile_class_names(tmp_path: Path, name: str) -> None:
    schema = pa.schema([image_field("image"), class_label_field("label", [name])])
    rows = pa.table([pa.array([b"x"], pa.large_binary()), pa.array([0], pa.uint8())], schema=schema)
    with pytest.raises(BadInput):
        export_dataset(Table(rows), tmp_path / "out")
    assert tree(tmp_path) == {}


def test_two_rows_of_one_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"two rows have the path 'a/1\.png'"):
        export_dataset(encoded_table(["a/1.png", "b/1.png", "a/1.png"]), tmp_path / "out")


def test_rows_without_a_path_or_an_image(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row 3 has no path"):
        export_dataset(encoded_table(["a", "b", "c", None]), tmp_path / "out")
    rows = encoded_table(["a", "b", "c"]).table
    missing = rows.set_column(
        1, rows.schema.field(1).with_nullable(True), pa.array([b"", None, b""], pa.large_binary())
    )
    with pytest.raises(BadInput, match="row 1 has no image"):
        export_dataset(Table(missing), tmp_path / "out", overwrite=True)


def test_a_folder_in_use_is_refused_and_other_files_in_it_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"mine")
    ds = encoded_table(["1.png"], [b"x"])
    with pytest.raises(BadInput, match="not empty"):
        export_dataset(ds, tmp_path)
    export_dataset(ds, tmp_path, overwrite=True)
    assert tree(tmp_path) == {"1.png": b"x", "mine.txt": b"mine"}
    with pytest.raises(BadInput, match="is a file"):
        export_dataset(ds, tmp_path / "mine.txt", overwrite=True)


def test_a_file_that_fails_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(confined.os, "replace", full)
    with pytest.raises(StoreFull, match="no space"):
        export_dataset(encoded_table(["a/1.png"]), tmp_path / "out")
    with pytest.raises(StoreFull, match="no space"):
        export_dataset(tensor_table(), tmp_path / "t.parquet")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("format", ["parquet", "csv"])
@pytest.mark.parametrize("full_after", [0, 4, 300])
def test_a_device_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, full_after: int) -> None:
    class Device(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell() >= full_after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]

    @contextmanager
    def full(path: Path) -> Iterator[io.BytesIO]:
        yield Device()

    monkeypatch.setattr(common, "replacing", full)
    text = pa.table({"x": [f"{index:0100}" for index in range(100)]})
    with pytest.raises(StoreFull, match=r"no space to write .*out"):
        export_dataset(Table(text), tmp_path / "out", format)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    export_dataset(encoded_table([f"{index % 3}/{index}.png" for index in range(30)]), tmp_path / "out")
    with pytest.raises(BadInput):
        export_dataset(encoded_table(["a/b/1.png", "../2.png"]), tmp_path / "out2")
    with pytest.raises(BadInput):
        export_dataset(encoded_table(["a", "a/1.png"]), tmp_path / "out3")
    assert (len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0) == before


def test_png_needs_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"leptonstore\[process\]"):
        export_dataset(tensor_table(), tmp_path / "out", "folder")
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_files(tmp_path: Path) -> None:
    floats = pa.schema([tensor_field("image", pa.float32(), (2, 2), "image")])
    with pytest.raises(SchemaError, match="cannot become PNG"):
        export_dataset(Table(floats.empty_table()), tmp_path / "out", "folder")
    with pytest.raises(SchemaError, match="no column of images"):
        export_dataset(Table(pa.table({"x": [1]})), tmp_path / "out", "folder")


# -- tables of files, and the choice of a format ----------------------------------------------------------------


def test_a_table_of_files_is_written_at_its_paths(tmp_path: Path) -> None:
    files = {"model.bin": b"\0" * 1000, "meta/info.json": b"{}", "meta/empty": b""}
    done: list[int] = []
    report = export_dataset(FileSet(files), tmp_path / "out", progress=done.append)
    assert tree(tmp_path / "out") == files
    assert report == ExportReport(tmp_path / "out", 3, 3, 1002)
    assert sum(done) == 3


def test_formats(tmp_path: Path) -> None:
    plain = Table(pa.table({"x": [1]}))
    with pytest.raises(BadInput, match="no export format 'tar'"):
        export_dataset(plain, tmp_path / "out", "tar")
    with pytest.raises(BadInput, match="cannot tell a format"):
        export_dataset(plain, tmp_path / "out")
    with pytest.raises(BadInput, match="only a directory of files, a checkpoint or a model"):
        export_dataset(plain, tmp_path / "out", "files")
    with pytest.raises(BadInput, match="exported as files, not as csv"):
        export_dataset(FileSet({}), tmp_path / "out", "csv")
    assert export_dataset(plain, tmp_path / "t.csv").rows == 1
    assert (tmp_path / "t.csv").read_text() == '"x"\n1\n'
