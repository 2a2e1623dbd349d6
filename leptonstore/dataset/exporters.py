"""Export: a dataset version, or a table of files, as files that other tools read.

    parquet   one file, zstd, a row group per batch; semantic types stay in the field metadata, so that importing it
              again gives the same schema
    csv       one file with a header line; a class label is written as its name; binary, tensor and nested columns are
              refused
    folder    images as <split>/<class>/<file>. Encoded images are written byte for byte, at their `path` when they have
              one; decoded ones become PNG. Other columns are not exported
    files     every file of a checkpoint, a model or a directory of files at its path

Everything streams: memory holds a batch. A file has its final name only when it is whole; a folder export that was
interrupted leaves whole files. Existing files are replaced only with overwrite=True, and then by name: other files in
the folder stay.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.confined import ConfinedFolder, checked_parts, replacing, writing
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.export_tree import export_tree
from leptonstore.dataset.filetree import is_file_tree
from leptonstore.dataset.schema import CODEC, class_names, semantic_of, tensor_shape
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, MissingExtra, SchemaError

FORMATS: dict[str, str] = {
    "parquet": "one Parquet file with all columns",
    "csv": "one CSV file; no binary, tensor or nested columns",
    "folder": "images as <split>/<class>/<file>",
    "files": "the files of a directory, a checkpoint or a model",
}
Progress: TypeAlias = Callable[[int], None]

_SUFFIX_FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
_IMAGE_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "bmp": ".bmp", "gif": ".gif", "webp": ".webp", "tiff": ".tif"}
_IMAGE_MAGICS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG", "png"),
    (b"BM", "bmp"),
    (b"GIF8", "gif"),
    (b"RIFF", "webp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)


@runtime_checkable
class Rows(Protocol):
    """What an export of rows reads: a Dataset or a view of one."""

    @property
    def schema(self) -> pa.Schema:
        """With semantic types in field metadata."""

    def __len__(self) -> int: ...

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(position of the first row, batch), in row order."""


@runtime_checkable
class Files(Protocol):
    """What an export of files reads: a FileTable."""

    def paths(self) -> list[str]:
        """Relative, with forward slashes."""

    def read(self, path: str) -> bytes:
        """The whole file, checked against its digest."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote. path: the file or folder. rows: rows, or files of a table of files. bytes: of all files."""

    path: Path
    rows: int
    files: int
    bytes: int


def export_dataset(
    ds: Rows | Files,
    dest: str | os.PathLike[str],
    format: str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write `ds` to `dest` in one of FORMATS (default: by the ending of `dest`, else by what `ds` holds).

    progress: called with the number of rows (or files) written since its last call.
    Raises BadInput (unknown format, `dest` exists and is not empty, a path that leads out of it, an image that is
    missing), SchemaError (columns that the format does not hold), MissingExtra (PNG without Pillow) and StoreFull.
    """
    if isinstance(ds, Dataset):
        ds = ds.uncached()  # all of it is read once: that would drive out of the hot cache what is read often
    target = Path(dest)
    name = format if format is not None else _format_for(ds, target)
    if name not in FORMATS:
        raise BadInput(f"no export format {name!r}; there are {', '.join(FORMATS)}")
    report = progress or (lambda rows: None)
    if isinstance(ds, Files):
        if name != "files":
            raise BadInput(f"a table of files is exported as files, not as {name}")
        _require_free_folder(target, overwrite)
        return _export_files(ds, target, report)
    if name == "files":
        if not isinstance(ds, Dataset) or not is_file_tree(ds.schema):
            raise BadInput(
                "only a directory of files, a checkpoint or a model is exported as files; choose parquet, csv or folder"
            )
        _require_free_folder(target, overwrite)
        done = export_tree(ds, target, report)
        return ExportReport(target, done.rows, done.files, done.bytes)
    if name == "folder":
        layout = _FolderLayout.of(ds.schema, len(ds))
        _require_free_folder(target, overwrite)
        return _export_folder(ds, layout, target, report)
    _require_free_file(target, overwrite)
    return (_export_parquet if name == "parquet" else _export_csv)(ds, target, report)


def _format_for(ds: Rows | Files, dest: Path) -> str:
    if isinstance(ds, Files):
        return "files"
    if is_file_tree(ds.schema) and not _SUFFIX_FORMATS.get(dest.suffix.lower()):
        return "files"
    suffix = _SUFFIX_FORMATS.get(dest.suffix.lower())
    if suffix:
        return suffix
    if any(semantic_of(field) == "image" for field in ds.schema):
        return "folder"
    raise BadInput(f"cannot tell a format from {dest}; end it in .parquet or .csv, or name one of {', '.join(FORMATS)}")


def _require_free_file(dest: Path, overwrite: bool) -> None:
    with writing(dest):
        if dest.is_dir():
            raise BadInput(f"{dest} is a folder; give the name of a file in it")
        if not overwrite and os.path.lexists(dest) and dest.stat().st_size > 0:
            raise BadInput(f"{dest} exists; give another name, or overwrite it")


def _require_free_folder(dest: Path, overwrite: bool) -> None:
    with writing(dest):
        if os.path.lexists(dest) and not dest.is_dir():
            raise BadInput(f"{dest} is a file; give the name of a folder")
        if not overwrite and dest.is_dir() and any(dest.iterdir()):
            raise BadInput(f"{dest} exists and is not empty; give another folder, or overwrite files in it")


# -- one file ----------------------------------------------------------------------------------------------------


def _export_parquet(ds: Rows, dest: Path, progress: Progress) -> ExportReport:
    import pyarrow.parquet as pq

    rows = 0
    with (
        replacing(dest) as file,
        _closing(lambda: pq.ParquetWriter(file, ds.schema, compression="zstd"), dest) as writer,
    ):
        for _, batch in ds.iter_batches():
            if batch.num_rows:
                with writing(dest):
                    writer.write_batch(batch, row_group_size=batch.num_rows)
                rows += batch.num_rows
                progress(batch.num_rows)
    return ExportReport(dest, rows, 1, dest.stat().st_size)


def _export_csv(ds: Rows, dest: Path, progress: Progress) -> ExportReport:
    import pyarrow.csv as pacsv

    schema = _csv_schema(ds.schema)
    rows = 0
    with replacing(dest) as file, _closing(lambda: pacsv.CSVWriter(file, schema), dest) as writer:
        for position, batch in ds.iter_batches():
            named = [_named(batch.column(field.name), field, position) for field in ds.schema]
            with writing(dest):
                writer.write_batch(pa.RecordBatch.from_arrays(named, schema=schema))
            rows += batch.num_rows
            progress(batch.num_rows)
    return ExportReport(dest, rows, 1, dest.stat().st_size)


@contextmanager
def _closing(make: Callable[[], Any], dest: Path) -> Iterator[Any]:
    """One of Arrow's writers, closed at the end; after a failure too, or it would write when it is collected."""
    with writing(dest):
        writer = make()
    try:
        yield writer
        with writing(dest):
            writer.close()
    except BaseException:
        with suppress(OSError, ValueError):  # what it wrote is thrown away
            writer.close()
        raise


def _csv_schema(schema: pa.Schema) -> pa.Schema:
    """The columns as they are written: class labels as text. Raises SchemaError for those that CSV cannot hold."""
    kinds = pa.types
    tests = (kinds.is_binary, kinds.is_large_binary, kinds.is_fixed_size_binary, kinds.is_nested)
    refused = [f for f in schema if tensor_shape(f) is not None or any(test(f.type) for test in tests)]
    if refused:
        listed = ", ".join(f"{field.name!r} ({field.type})" for field in refused)
        raise SchemaError(f"csv cannot hold column {listed}; export as parquet, or drop it first")
    return pa.schema([pa.field(f.name, f.type if class_names(f) is None else pa.string()) for f in schema])


def _named(column: pa.Array, field: pa.Field, position: int) -> pa.Array:
    """A class-label column as the names of its classes, any other as it is. Raises BadInput for a label without one."""
    names = class_names(field)
    if names is None:
        return column
    indices = column.to_numpy(zero_copy_only=False) if not column.null_count else column.fill_null(0).to_numpy()
    wrong = np.flatnonzero((indices < 0) | (indices >= len(names)))
    wrong = wrong[column.is_valid().to_numpy(zero_copy_only=False)[wrong]]
    if len(wrong):
        row, label = int(wrong[0]), indices[wrong[0]]
        raise BadInput(
            f"row {position + row} has the {field.name} {label}, which has no name (0 to {len(names) - 1}); "
            "clean the dataset, or export as parquet"
        )
    return pc.take(pa.array(names, pa.string()), column)


# -- trees of files ----------------------------------------------------------------------------------------------


def _export_files(table: Files, dest: Path, progress: Progress) -> ExportReport:
    def items() -> Iterator[tuple[str, Buffer]]:
        for path in table.paths():
            yield path, table.read(path)
            progress(1)

    return _write_tree(dest, items())


def _export_folder(ds: Rows, layout: _FolderLayout, dest: Path, progress: Progress) -> ExportReport:
    def items() -> Iterator[tuple[str, Buffer]]:
        for position, batch in ds.iter_batches(layout.columns):
            images = layout.images(batch, position)
            yield from zip(layout.paths(batch, position, images), images, strict=True)
            progress(batch.num_rows)

    return _write_tree(dest, items())


def _write_tree(dest: Path, items: Iterable[tuple[str, Buffer]]) -> ExportReport:
    files = size = 0
    with ConfinedFolder(dest) as folder:
        for path, data in items:
            folder.write(path, data)
            files += 1
            size += memoryview(data).nbytes
    return ExportReport(dest, files, files, size)


@dataclass(frozen=True)
class _FolderLayout:
    """Which columns make up a folder of images, and how a row becomes a path and a file.

    path, label, split: None where the table has no such column. digits: width of the row numbers in made-up names.
    """

    image: pa.Field
    path: pa.Field | None
    label: pa.Field | None
    split: pa.Field | None
    digits: int

    @classmethod
    def of(cls, schema: pa.Schema, rows: int) -> _FolderLayout:
        """Raises SchemaError when there is no column of images, or one that cannot become files."""
        images = [field for field in schema if semantic_of(field) == "image"]
        if not images:
            raise SchemaError(f"no column of images to export as a folder ({', '.join(schema.names)}); use parquet")
        image = images[0]
        shape = tensor_shape(image)
        if shape is not None:
            if image.type.value_type != pa.uint8() or not (len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4)):
                raise SchemaError(f"column {image.name!r} ({image.type}) cannot become PNG files; use parquet")
            _require_pillow()
        elif not (pa.types.is_binary(image.type) or pa.types.is_large_binary(image.type)):
            raise SchemaError(f"column {image.name!r} ({image.type}) holds no image files; use parquet")

        def class_label(name: str) -> pa.Field | None:
            field = schema.field(name) if name in schema.names else None
            return field if field is not None and class_names(field) is not None else None

        paths = [field for field in schema if semantic_of(field) == "path"]
        path = paths[0] if paths else None
        return cls(image, path, class_label("label"), class_label("split"), max(6, len(str(rows))))

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        needed = [self.image, self.path] if self.path is not None else [self.image, self.split, self.label]
        return [field.name for field in needed if field is not None]

    def images(self, batch: pa.RecordBatch, position: int) -> list[Buffer]:
        """The files of a batch. Raises BadInput for a row without an image."""
        column = batch.column(self.image.name)
        if column.null_count:
            row = position + column.is_null().index(True).as_py()
            raise BadInput(f"row {row} has no image to export; clean the dataset")
        if tensor_shape(self.image) is not None:
            return [_png(image) for image in column.to_numpy_ndarray()]
        return [memoryview(value.as_buffer()) for value in column]

    def paths(self, batch: pa.RecordBatch, position: int, images: Sequence[Buffer]) -> Iterator[str]:
        """The path of each row: its own, or <split>/<class>/<row number>. Raises BadInput for a row without one."""
        decoded = tensor_shape(self.image) is not None
        if self.path is not None:
            for row, path in enumerate(batch.column(self.path.name).to_pylist()):
                if path is None:
                    raise BadInput(f"row {position + row} has no path to export it at; clean the dataset")
                yield os.path.splitext(path)[0] + ".png" if decoded else path
            return
        folders = [
            _named(batch.column(field.name), field, position).to_pylist()
            for field in (self.split, self.label)
            if field is not None
        ]
        for row, image in enumerate(images):
            suffix = ".png" if decoded else self._suffix(image)
            name = f"{position + row:0{self.digits}}{suffix}"
            yield "/".join([*(_folder_name(names[row]) for names in folders), name])

    def _suffix(self, image: Buffer) -> str:
        codec = (self.image.metadata or {}).get(CODEC, b"mixed").decode()
        head = bytes(memoryview(image)[:4])
        sniffed = next((name for magic, name in _IMAGE_MAGICS if head.startswith(magic)), "")
        return _IMAGE_SUFFIXES.get(codec) or _IMAGE_SUFFIXES.get(sniffed, ".bin")


def _folder_name(name: str | None) -> str:
    """A class's name as one folder. Raises BadInput for names that are none, such as "a/b" or ".."."""
    if name is None:
        raise BadInput("a row has no class or split, so that there is no folder for it; clean the dataset")
    if len(checked_parts(name)) != 1:
        raise BadInput(f"class {name!r} cannot be the name of a folder; rename it, or export as parquet")
    return name


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtra("writing PNG images", "process", "PIL") from None


def _png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()
