"""Samples to look at: which rows, their pixels, and their thumbnails as data URIs.

Choices are deterministic: the same version gives the same rows, so that two reports can be compared.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.errors import SourceError
from leptonstore.limits import REPORT_GALLERY_MAX, REPORT_SAMPLES_MAX
from leptonstore.process import columns, images
from leptonstore.process.clean import CleanReport


@dataclass(frozen=True)
class Sample:
    """One picture of a report: uint8 H x W or H x W x C pixels (None: there is nothing to show), and what to say.

    row: its number in the dataset, None when it comes from elsewhere. label: the class, or what was predicted.
    caption: one more line. A sample with `wrong` is marked as a mistake.
    """

    row: int | None
    image: NDArray[np.uint8] | None
    label: str = ""
    caption: str = ""
    wrong: bool = False


def pick_samples(ds: Dataset, count: int = REPORT_SAMPLES_MAX) -> list[Sample]:
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
    shown = _spread(len(classes), count)
    each = max(1, count // len(shown))
    rows: list[int] = []
    for chosen in shown.tolist():
        members = np.flatnonzero(index == chosen)
        rows += members[_spread(len(members), each)].tolist()
    return sample_rows(ds, rows)


def sample_rows(ds: Dataset, rows: Sequence[int], captions: Iterable[str] = ()) -> list[Sample]:
    """The given rows with their pixels and class names; `captions` follow `rows`. No image column: no pixels."""
    if not len(rows):
        return []
    found = columns.image_columns(ds.schema)
    labels = columns.label_columns(ds.schema)
    wanted = [found[0].name] if found else []
    wanted += [next(iter(labels))] if labels else []
    said = list(captions) or [""] * len(rows)
    if not wanted:
        return [Sample(row, None, "", caption) for row, caption in zip(rows, said, strict=True)]
    table = ds.take(np.asarray(rows, dtype=np.int64), columns=wanted)
    pixels: list[NDArray[np.uint8] | None] = [None] * len(rows)
    shown = [""] * len(rows)
    at = 0
    for batch in table.to_batches():
        for row in range(batch.num_rows):
            if found:
                pixels[at + row] = _pixels(batch.column(found[0].name).slice(row, 1), found[0])
        if labels:
            values = columns.indices(batch.column(wanted[-1])).tolist()
            shown[at : at + batch.num_rows] = [class_shown(labels[wanted[-1]], value) for value in values]
        at += batch.num_rows
    return [Sample(*parts) for parts in zip(rows, pixels, shown, said, strict=True)]


def finding_samples(ds: Dataset, report: CleanReport, count: int = REPORT_GALLERY_MAX) -> list[Sample]:
    """Rows with findings, every check that found something represented; `ds` is the dataset that was searched."""
    present = [report.findings.filter(pc.field("check") == check) for check in report.counts()]
    chosen: list[dict[str, Any]] = []
    for place, table in enumerate(present):
        share = max(1, (count - len(chosen)) // (len(present) - place))
        chosen += table.slice(0, share).to_pylist()
    captions = [f"{one['check'].replace('_', ' ')}: {said(one)}" for one in chosen]
    return sample_rows(ds, [one["row"] for one in chosen], captions)


def said(finding: Mapping[str, Any]) -> str:
    """What a finding says in words, with the other row where there is one."""
    return str(finding["detail"]) + ("" if finding["other"] is None else f" (row {finding['other']:,})")


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
    """A PNG data URI whose longer edge is at most `edge_max` pixels."""
    if image is None or not image.size:
        return Thumbnail("", 1, 1, False)
    height, width = image.shape[:2]
    scale = min(1.0, edge_max / max(height, width))
    uri = "data:image/png;base64," + base64.b64encode(images.thumbnail_png(image, edge_max)).decode("ascii")
    shrunk = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Thumbnail(uri, *shrunk, tiny=max(shrunk) < 64 and scale == 1.0)


def _spread(size: int, count: int) -> NDArray[np.int64]:
    """At most `count` of range(size), evenly spaced and away from the ends; all of them when they are fewer."""
    count = min(size, count)
    return (2 * np.arange(count, dtype=np.int64) + 1) * size // (2 * max(count, 1))


def _pixels(array: pa.Array, image: columns.ImageColumn) -> NDArray[np.uint8] | None:
    """Pixels of a column slice of one row; None when it is null or does not decode."""
    if columns.null_mask(array)[0]:
        return None
    if image.shape is not None:
        return np.asarray(columns.tensor_values(array)[0])
    value = columns.byte_values(array)[0]
    try:
        return None if value is None else images.decode(value, image.name)
    except SourceError:
        return None
