"""Rows as pages show them: galleries of pictures and texts, tables, and all values of one row.

What is long is told by its size and not read: pages of columns are, large values are not (except pictures that are shown, a few at a time).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_render import Whole
from leptonstore.dataset import Dataset
from leptonstore.dataset.diff import LargeValue, python_values
from leptonstore.dataset.schema import class_names, semantic_of, tensor_shape
from leptonstore.dataset.shown import one_line, shown
from leptonstore.errors import LeptonError, MissingExtra
from leptonstore.process import charts, columns
from leptonstore.process.gallery import Thumbnail, sample_rows, thumbnail

NO_TEXT = Whole("")
NO_PICTURE = Thumbnail("", 1, 1, False)


@dataclass(frozen=True)
class Picture:
    """One row of a gallery. text: what it says, cut; more: whether it was."""

    row: int
    image: Thumbnail
    uri: charts.Drawn
    label: str
    text: Whole
    more: bool
    alt: str


@dataclass(frozen=True)
class Gallery:
    """pictures: whether rows have one; wide: whether labels need room; problem: why there are no pictures."""

    rows: Sequence[Picture]
    pictures: bool
    wide: bool
    problem: str = ""


@dataclass(frozen=True)
class Cell:
    """A value in a table; `large` was not read, `soft` is none."""

    text: str
    number: bool = False
    soft: bool = False


@dataclass(frozen=True)
class Table:
    """Rows by number. left_out: columns that are on the rows' own pages."""

    names: Sequence[str]
    numbers: Sequence[bool]
    rows: Sequence[tuple[int, Sequence[Cell]]]
    left_out: int


@dataclass(frozen=True)
class FileRow:
    """A file of a checkpoint or model."""

    row: int
    path: str
    bytes: int


@dataclass(frozen=True)
class Value:
    """One column of one row. kind: "image", "text", "scalar", "list", "bytes", "null"; column: its number, for its address."""

    name: str
    type: str
    kind: str
    column: int
    text: Whole = NO_TEXT
    note: str = ""
    size: tuple[int, int] = (0, 0)  # width and height of a picture, when they are known
    tiny: bool = False


def gallery_of(ds: Dataset, rows: Sequence[int]) -> Gallery:
    """Rows with their pictures and texts. Raises what reading raises."""
    pictures = bool(columns.image_columns(ds.schema))
    try:
        samples = sample_rows(ds, list(rows))
    except MissingExtra as error:
        return Gallery([], pictures, False, str(error))
    made = []
    for sample in samples:
        small = thumbnail(sample.image, bounds.THUMBNAIL_EDGE) if sample.image is not None else NO_PICTURE
        text = sample.text[: bounds.TEXT_CHARS_MAX]
        row = int(sample.row or 0)
        alt = f"Row {row:,}" + (f": {sample.label}" if sample.label else "")
        more = len(sample.text) > bounds.TEXT_CHARS_MAX
        made.append(Picture(row, small, charts.Drawn(small.uri), sample.label, Whole(text), more, alt))
    return Gallery(made, pictures, any(len(one.label) > 6 for one in made))


def table_of(ds: Dataset, rows: Sequence[int], wanted: Sequence[str] = ()) -> Table:
    """Rows in a table, of the first COLUMNS_MAX columns, or of those wanted."""
    fields = ds.fields(list(wanted) or None)
    chosen = fields[: bounds.COLUMNS_MAX]
    numbers = [columns.is_number(field.type) and class_names(field) is None for field in chosen]
    by_column = [cells(ds, rows, field) for field in chosen]
    lines = [(int(row), [column[at] for column in by_column]) for at, row in enumerate(rows)]
    return Table([field.name for field in chosen], numbers, lines, len(fields) - len(chosen))


def cells(ds: Dataset, rows: Sequence[int], field: pa.Field) -> list[Cell]:
    """The values of a column in some rows, each in a line."""
    number = columns.is_number(field.type) and class_names(field) is None
    shape = tensor_shape(field)
    if shape is not None:
        what = f"{field.type.value_type} {' × '.join(map(str, shape))}"
        return [Cell(what, soft=True)] * len(rows)
    stored = ds.take_stored(np.asarray(rows, np.int64), field.name)
    return [cell(value, field, number) for value in python_values(stored, field.type)]


def cell(value: Any, field: pa.Field, number: bool = False) -> Cell:
    """A value in a line."""
    if value is None:
        return Cell("null", number, soft=True)
    if isinstance(value, LargeValue):
        return Cell(charts.as_bytes(value.size), number, soft=True)
    if isinstance(value, bytes) and semantic_of(field) != "path":
        return Cell(charts.as_bytes(len(value)), number, soft=True)
    if isinstance(value, (list, dict)):
        return Cell(one_line(str(value)[: 4 * bounds.CELL_CHARS_MAX], bounds.CELL_CHARS_MAX), number)
    if isinstance(value, str) and not value:
        return Cell("empty", number, soft=True)
    return Cell(shown(value, field, bounds.CELL_CHARS_MAX), number)


def files_of(ds: Dataset) -> list[FileRow]:
    """The files of a table of files, as many as a page lists."""
    rows = np.arange(min(len(ds), bounds.SCHEMA_COLUMNS_MAX), dtype=np.int64)
    paths = python_values(ds.take_stored(rows, "path"), ds.schema.field("path").type)
    data = python_values(ds.take_stored(rows, "data"), ds.schema.field("data").type)
    return [
        FileRow(int(row), str(path), value.size if isinstance(value, LargeValue) else len(value or b""))
        for row, path, value in zip(rows, paths, data, strict=True)
    ]


def values_of(ds: Dataset, row: int) -> list[Value]:
    """All columns of one row, as many as a page lists."""
    found = []
    for number, field in enumerate(list(ds.schema)[: bounds.SCHEMA_COLUMNS_MAX]):
        found.append(_value(ds, row, number, field))
    return found


def _value(ds: Dataset, row: int, number: int, field: pa.Field) -> Value:
    base = Value(field.name, str(semantic_of(field) or field.type), "scalar", number)
    image = columns.as_images(field) if semantic_of(field) == "image" else None
    try:
        if image is not None and image.shape is not None:
            height, width = image.shape[:2]
            return _with(
                base, kind="image", size=(width, height), note=f"{width} × {height}", tiny=max(width, height) < 128
            )
        if tensor_shape(field) is not None:
            return _tensor(base, ds, row, field)
        value = python_values(ds.take_stored(np.asarray([row]), field.name), field.type)[0]
    except LeptonError as error:
        return _with(base, kind="null", note=f"cannot be read: {type(error).__name__}")
    if value is None:
        return _with(base, kind="null", note="null")
    if isinstance(value, LargeValue) and not columns.is_binary(field.type):
        if value.size > 4 * bounds.VALUE_CHARS_MAX:
            return _with(base, kind="bytes", note=charts.as_bytes(value.size))
        value = str(ds.chunks.get(bytes.fromhex(value.digest)), "utf-8", "replace")
    if isinstance(value, (LargeValue, bytes)) and semantic_of(field) != "path":
        size = value.size if isinstance(value, LargeValue) else len(value)
        return _with(base, kind="image" if image is not None else "bytes", note=charts.as_bytes(size))
    if isinstance(value, str):
        cut = value[: bounds.VALUE_CHARS_MAX]
        note = f"{len(value):,} characters" if len(value) > bounds.CELL_CHARS_MAX else ""
        if len(cut) < len(value):
            note += f", of which {len(cut):,} are shown"
        return _with(
            base,
            kind="text" if "\n" in cut or len(cut) > bounds.CELL_CHARS_MAX else "scalar",
            text=Whole(cut),
            note=note,
        )
    if isinstance(value, (list, tuple, Mapping)):
        return _listed(base, value)
    return _with(base, text=Whole(shown(value, field, bounds.CELL_CHARS_MAX)))


def _tensor(base: Value, ds: Dataset, row: int, field: pa.Field) -> Value:
    shape = tensor_shape(field) or ()
    array = ds.take_stored(np.asarray([row]), field.name).values
    if array.null_count:
        return _with(base, kind="null", note="null")
    flat = columns.tensor_values(array)[0].reshape(-1)
    most = bounds.LIST_VALUES_MAX
    text = ", ".join(charts.short(float(one)) for one in flat[:most]) + (" …" if flat.size > most else "")
    return _with(base, kind="list", text=Whole(text), note=f"{field.type.value_type} {' × '.join(map(str, shape))}")


def _listed(base: Value, value: Any) -> Value:
    if isinstance(value, (list, tuple)) and len(value) > bounds.LIST_VALUES_MAX:
        text = json.dumps(value[: bounds.LIST_VALUES_MAX], ensure_ascii=False, default=str)[:-1] + ", …"
        return _with(base, kind="list", text=Whole(text), note=f"{len(value):,} values")
    text = json.dumps(value, ensure_ascii=False, default=str, indent=1 if isinstance(value, Mapping) else None)
    note = f"{len(value):,} values" if isinstance(value, (list, tuple)) else ""
    return _with(base, kind="list", text=Whole(text[: bounds.VALUE_CHARS_MAX]), note=note)


def _with(base: Value, **changes: Any) -> Value:
    return Value(**{**vars(base), **changes})
