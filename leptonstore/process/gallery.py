"""Rows to look at: which ones, their pictures or texts, and thumbnails as data URIs.

Choices are deterministic: the same version gives the same rows, so that two reports can be compared. Pictures are shrunk as they are
read, a few at a time, so that a gallery of photographs costs megabytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_names, semantic_of
from leptonstore.dataset.shown import shown
from leptonstore.dataset.values import one_array
from leptonstore.errors import SourceError
from leptonstore.process import columns, images
from leptonstore.process.clean import CleanReport
from leptonstore.process.findings import worst

READ_ROWS = 8  # rows with pictures that are read at a time: as many files of up to IMAGE_FILE_BYTES_MAX are in memory
QUICK_PNG_MAX = 2  # a quick PNG that is so many times as large as the JPEG is not tried again: 1.4 times is the most that it gets smaller
TINY_EDGE = 64  # pixels; smaller pictures are enlarged without smoothing, so that pixels stay visible
TEXT_CHARS_MIN = 32  # mean length from which on a string column without a semantic type is taken for text
_PROBED_ROWS = 16
_ROW_COLUMNS_MAX = 8  # of a row that is told in a line


@dataclass(frozen=True)
class Sample:
    """One row of a report: uint8 H x W or H x W x C pixels (None: there is no picture), and what to say.

    row: its number in the dataset, None when it comes from elsewhere. label: the class, or what was predicted.
    caption: one more line. A sample with `wrong` is marked as a mistake. text: what the row says, where it is text or a table.
    about: the check that found it, or anything else that a gallery is parted by.
    """

    row: int | None
    image: NDArray[np.uint8] | None
    label: str = ""
    caption: str = ""
    wrong: bool = False
    text: str = ""
    about: str = ""


def pick_samples(ds: Dataset, count: int = limits.REPORT_SAMPLES_MAX) -> list[Sample]:
    """About `count` rows, spread evenly over the classes and, within each, over the dataset; class by class.

    Without a label column the rows are spread over the dataset; without an image column there are none.
    """
    if not columns.image_columns(ds.schema) or not len(ds):
        return []
    labels = columns.label_columns(ds.schema)
    if not labels:
        return sample_rows(ds, _spread(len(ds), count).tolist())
    name = next(iter(labels))
    parts = [columns.indices(batch.column(0)) for _, batch in ds.iter_batches(columns=[name])]
    classes, index = np.unique(np.concatenate(parts), return_inverse=True)
    chosen = _spread(len(classes), count)
    each = max(1, count // len(chosen))
    rows: list[int] = []
    for one in chosen.tolist():
        members = np.flatnonzero(index == one)
        rows += members[_spread(len(members), each)].tolist()
    return sample_rows(ds, rows)


def pick_texts(ds: Dataset, count: int = limits.REPORT_TEXTS_MAX) -> list[Sample]:
    """Rows of the text column, spread evenly over the dataset; none without such a column, or where there are pictures."""
    if columns.image_columns(ds.schema) or text_column(ds) is None:
        return []
    return sample_rows(ds, _spread(len(ds), count).tolist())


def text_column(ds: Dataset) -> str | None:
    """The column that holds what people read: the first with semantic type text, else the longest strings, None where all are short."""
    strings = [one for one in ds.schema if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)]
    told = [one.name for one in strings if semantic_of(one) == "text"]
    plain = [one.name for one in strings if not semantic_of(one)]
    if told or not plain or not len(ds):
        return told[0] if told else None
    some = ds.take(_spread(len(ds), _PROBED_ROWS), columns=plain)
    means = [np.mean([len(value or "") for value in some[name].to_pylist()]) for name in plain]
    longest = int(np.argmax(means))
    return plain[longest] if means[longest] >= TEXT_CHARS_MIN else None


def sample_rows(ds: Dataset, rows: Sequence[int], captions: Iterable[str] = ()) -> list[Sample]:
    """The given rows with their pictures, texts and class names; `captions` follow `rows`. Neither picture nor text: the row in a line."""
    if not len(rows):
        return []
    said = list(captions) or [""] * len(rows)
    found = columns.image_columns(ds.schema)
    labels = columns.label_columns(ds.schema)
    text = text_column(ds)
    label = next(iter(labels), None)
    wanted = [found[0].name] if found else []
    wanted += [name for name in (label, text) if name is not None]
    if not found and text is None:
        wanted = list(dict.fromkeys([*wanted, *ds.column_names]))[:_ROW_COLUMNS_MAX]
    step = READ_ROWS if found and found[0].shape is None else max(len(rows), 1)
    samples = []
    for first in range(0, len(rows), step):
        some = list(rows[first : first + step])
        table = ds.take(np.asarray(some, dtype=np.int64), columns=wanted).combine_chunks()
        batch = pa.RecordBatch.from_arrays([one_array(column) for column in table.columns], schema=table.schema)
        names = [""] * len(some)
        if label is not None:
            names = [class_shown(labels[label], value) for value in columns.indices(batch.column(label)).tolist()]
        for at, row in enumerate(some):
            picture = _pixels(batch.column(found[0].name).slice(at, 1), found[0]) if found else None
            words = batch.column(text)[at].as_py() if text is not None else "" if found else _line(batch, at, label)
            cut = (words or "")[: limits.REPORT_PASSAGE_CHARS_MAX + 1]
            samples.append(Sample(row, picture, names[at], said[first + at], text=cut))
    return samples


def _line(batch: pa.RecordBatch, row: int, label: str | None) -> str:
    """A row of a table in one line. The label stands elsewhere."""
    said = [
        f"{field.name} {shown(batch.column(at)[row].as_py(), field)}"
        for at, field in enumerate(batch.schema)
        if field.name != label
    ]
    return ", ".join(said)


@dataclass(frozen=True)
class RowTable:
    """The first rows of a table as text. numbers: which columns stand to the right. left_out: columns that are not shown."""

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[bool]
    total: int
    left_out: int = 0


def first_rows(ds: Dataset, count: int = limits.REPORT_ROWS_MAX) -> RowTable:
    """The first rows, of as many columns as a page shows side by side."""
    names = ds.column_names[: limits.HTML_COLUMNS_MAX]
    fields = ds.fields(names)
    rows = [[shown(row[field.name], field) for field in fields] for row in ds.head(count, names)]
    numbers = [columns.is_number(field.type) and class_names(field) is None for field in fields]
    return RowTable(names, rows, numbers, len(ds), len(ds.column_names) - len(names))


def class_shown(names: Sequence[str], index: int) -> str:
    """The name of a class, or its bare index where it has no name."""
    return names[index] if 0 <= index < len(names) else str(index)


@dataclass(frozen=True)
class Thumbnail:
    """A picture ready for `<img>`: data URI ("" without pixels), its size in pixels, and whether it is tiny (then it is
    enlarged without smoothing, so that pixels stay visible)."""

    uri: str
    width: int
    height: int
    tiny: bool


def thumbnail(image: NDArray[np.uint8] | None, edge_max: int) -> Thumbnail:
    """A data URI whose longer edge is at most `edge_max` pixels: PNG, or JPEG where that is smaller (photographs)."""
    if image is None or not image.size:
        return Thumbnail("", 1, 1, False)
    small = images.shrink(image, edge_max)
    height, width = small.shape[:2]
    kind, data = "jpeg", b""
    if max(height, width) >= TINY_EDGE:
        data = images.encode(small, "JPEG", quality=85)
    # A PNG made as small as it gets takes ten times as long as one made quickly, which tells whether that is worth it.
    if not data or len(images.encode(small, "PNG", compress_level=1)) < QUICK_PNG_MAX * len(data):
        drawing = images.encode(small, "PNG", optimize=True)
        if not data or len(drawing) <= len(data):
            kind, data = "png", drawing
    uri = f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
    return Thumbnail(uri, width, height, tiny=max(height, width) < TINY_EDGE and small.shape == image.shape)


def _spread(size: int, count: int) -> NDArray[np.int64]:
    """At most `count` of range(size), evenly spaced and away from the ends; all of them when they are fewer."""
    count = min(size, count)
    return (2 * np.arange(count, dtype=np.int64) + 1) * size // (2 * max(count, 1))


def _pixels(array: pa.Array, image: columns.ImageColumn) -> NDArray[np.uint8] | None:
    """Pixels of a column slice of one row, as large as a page shows them; None when it is null or does not decode."""
    if columns.null_mask(array)[0]:
        return None
    edge = limits.REPORT_THUMBNAIL_EDGES[0]
    if image.shape is not None:
        return images.shrink(np.array(columns.tensor_values(array)[0]), edge)
    value = columns.byte_values(array)[0]
    try:
        return None if value is None else images.decode_small(value, edge, image.name)
    except SourceError:
        return None


def finding_samples(ds: Dataset, report: CleanReport, each: int = limits.REPORT_CHECK_SAMPLES_MAX) -> list[Sample]:
    """Rows with findings, at most `each` of every check that found something, the worst first; `ds` is the version that was searched."""
    rows: list[int] = []
    captions: list[str] = []
    about: list[str] = []
    seen = {image.name for image in columns.image_columns(ds.schema)[:1]} | {
        text_column(ds),
        *columns.label_columns(ds.schema),
    }
    for check in report.counts():
        chosen: dict[int, Mapping[str, Any]] = {}
        for one in worst(report.findings, check, 4 * each).to_pylist():
            chosen.setdefault(one["row"], one)  # a check may say several things of a row
        for one in list(chosen.values())[:each]:
            where = f"{one['column']}: " if one["column"] and one["column"] not in seen else ""
            rows.append(one["row"])
            captions.append(where + said(one))
            about.append(check)
    samples = sample_rows(ds, rows, captions)
    return [replace(sample, about=check) for sample, check in zip(samples, about, strict=True)]


def said(finding: Mapping[str, Any]) -> str:
    """What a finding says in words, with the other row where there is one."""
    return str(finding["detail"]) + ("" if finding["other"] is None else f" (row {finding['other']:,})")
