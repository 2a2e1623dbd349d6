"""What all exports share: what they read, what they report, and where they write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.dataset.confined import replacing, writing
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.places import Place, UrlPlace
from leptonstore.dataset.schema import class_names
from leptonstore.errors import BadInput

Progress: TypeAlias = Callable[[int], None]


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
    """What an export wrote. path: the file or folder, or its URL. rows: rows, or files of a table of files. bytes: of all files."""

    path: Place
    rows: int
    files: int
    bytes: int


def require_free_file(dest: Place, overwrite: bool) -> None:
    """Raises BadInput for a folder, and for a file with something in it that is not to be replaced."""
    with writing(dest):
        if dest.is_dir() and not isinstance(dest, UrlPlace):
            raise BadInput(f"{dest} is a folder; give the name of a file in it")
        there = dest.exists() if isinstance(dest, UrlPlace) else os.path.lexists(dest)
        if not overwrite and there and dest.stat().st_size > 0:
            raise BadInput(f"{dest} exists; give another name, or overwrite it (--overwrite)")


def require_free_folder(dest: Place, overwrite: bool) -> None:
    """Raises BadInput for a file, and for a folder with something in it that is not to be written to."""
    with writing(dest):
        if dest.is_file() or (not isinstance(dest, UrlPlace) and os.path.lexists(dest) and not dest.is_dir()):
            raise BadInput(f"{dest} is a file; give the name of a folder")
        if not overwrite and dest.is_dir() and any(dest.iterdir()):
            raise BadInput(
                f"{dest} exists and is not empty; give another folder, or overwrite files in it (--overwrite)"
            )


@contextmanager
def new_file(dest: Place) -> Iterator[IO[bytes]]:
    """A new file (or object) that is there when the block ends, whole, and never was when the block fails."""
    with dest.creating() if isinstance(dest, UrlPlace) else replacing(dest) as file:
        yield file


@contextmanager
def closing(make: Callable[[], Any], dest: Place) -> Iterator[Any]:
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


def named(column: pa.Array, field: pa.Field, position: int) -> pa.Array:
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


def batches_from(ds: Rows, first: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(position of the first row, batch) from row `first` on, in batches of bounded size."""
    if first and isinstance(ds, Dataset):
        rest = ds.select(np.arange(first, len(ds)))
        found = ((position + first, batch) for position, batch in rest.iter_batches())
    else:
        found = ((position, batch) for position, batch in ds.iter_batches())
    for position, batch in found:
        rows = max(1, limits.IMPORT_BATCH_BYTES_MAX // max(1, batch.nbytes // max(1, batch.num_rows)))
        for start in range(max(0, first - position), batch.num_rows, rows):
            yield position + start, batch.slice(start, rows)


def require_no_nulls(column: pa.Array, field: pa.Field, position: int, what: str) -> None:
    """Raises BadInput, with the row, for a column of a format without null."""
    if column.null_count:
        row = position + column.is_null().index(True).as_py()
        raise BadInput(
            f"row {row} has no value in column {field.name!r}, and {what} has no null; clean the dataset, or export as parquet"
        )
