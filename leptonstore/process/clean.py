"""Find rows that spoil training, and write a version without them.

What is found, in this order; a row that fails one of the first four takes no part in the search for duplicates, so
that the copy which is kept is a good one:

    nulls                a null in a column that the schema says has none
    undecodable          an encoded image that is empty, truncated, damaged, too large or no image at all
    constant             an image whose pixels are all equal (a tensor column of one pixel per row is left alone)
    labels_out_of_range  a class index below 0 or without a name
    duplicates           the same image value as an earlier row of the same split; the first row is kept
    leakage              the same image value as a row of another split. The more held-out row is kept (test, then
                         any other split, then train), so that evaluation stays whole and training loses the copy

Rows are equal when all their image columns hold equal values (BLAKE3 of the stored value: the encoded file, or the
tensor's bytes). A dataset without image columns is not searched for duplicates: equal rows of a table are no mistake.

Nothing is dropped silently: the report lists every row, the new version's lineage counts the reasons, and the rows
stay readable in the parent commit. Memory: 32 bytes of digest, 8 of row number and 16 of split and label per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.source import Source
from leptonstore.errors import BadInput, SourceError
from leptonstore.process import columns, images
from leptonstore.process import findings as findings_
from leptonstore.process.derive import publish_derived
from leptonstore.store import Store

CHECKS = ("nulls", "undecodable", "constant", "labels_out_of_range", "duplicates", "leakage")


@dataclass(frozen=True)
class CleanReport:
    """What `find` saw in `rows` rows of the version `commit`. findings: findings.SCHEMA, by row. checks: what was searched for."""

    dataset: str
    commit: str
    fingerprint: str
    rows: int
    findings: pa.Table = field(default_factory=findings_.SCHEMA.empty_table)
    checks: tuple[str, ...] = CHECKS

    def counts(self) -> dict[str, int]:
        """Number of findings of each check that found any, in the order of `checks`."""
        found = findings_.counts(self.findings)
        return {check: found[check] for check in (*self.checks, *found) if check in found}

    def rows_found(self) -> NDArray[np.int64]:
        """The row numbers that have a finding, each once, ascending."""
        return findings_.rows_found(self.findings)

    def _repr_html_(self) -> str:
        """For notebooks."""
        from leptonstore.process.notebook import clean_html

        return clean_html(self)

    def to_json(self) -> dict[str, Any]:
        """JSON-able: identity, counts and every finding."""
        return {
            "dataset": self.dataset,
            "commit": self.commit,
            "rows": self.rows,
            "rows_found": len(self.rows_found()),
            "checks": list(self.checks),
            "counts": self.counts(),
            "findings": self.findings.to_pylist(),
        }


def find(ds: Dataset) -> CleanReport:
    """Search a dataset (or a view of one) once, in row order. Encoded images are decoded, in a few threads.

    Raises MissingExtra when there are encoded images and no Pillow.
    """
    scan = _Scan(ds.schema)
    for start, batch in ds.iter_batches():
        scan.add(start, batch)
    found = sorted(scan.findings + scan.duplicates(), key=lambda one: (one[0], CHECKS.index(one[1])))
    tables = [
        findings_.findings_table(check, column, [row], [detail], others=[other])
        for row, check, column, detail, other in found
    ]
    return CleanReport(ds.name, ds.commit, ds.fingerprint, len(ds), findings_.joined(tables))


def apply_clean(store: Store, ds: Dataset, report: CleanReport, branch: str = "main") -> Dataset:
    """Write a version of `ds` without the rows of `report` to `branch`; its first parent is `ds` (see derive.py).
    No findings: `ds` itself, and nothing is written.

    The same dataset and report give the same commit. Raises BadInput when the report is about another version, when
    `ds` is a view, or when no row would be left.
    """
    if report.fingerprint != ds.fingerprint:
        raise BadInput(f"the report is about {report.dataset}@{report.commit[:12]}, not this version; run find() again")
    drop = report.rows_found()
    if not len(drop):
        return ds
    if ds.selection is not None:
        raise BadInput(f"a view of {ds.name} cannot be cleaned: open the whole version, clean that, then split it")
    if len(drop) == len(ds):
        raise BadInput(f"every row of {ds.name} has a finding; look at the report before removing anything")
    lineage = {
        "operation": "clean",
        "parent": ds.commit,
        "rows_before": len(ds),
        "rows_removed": len(drop),
        "removed": report.counts(),
    }
    source = Source(
        schema=ds.schema,
        identity=ds.identity,
        batches=lambda: _without(ds, drop),
        rows=len(ds) - len(drop),
        lineage=lineage,
    )
    reasons = ", ".join(f"{count} {check.replace('_', ' ')}" for check, count in report.counts().items())
    message = f"clean: {len(drop)} of {len(ds)} rows removed ({reasons})"
    return publish_derived(store, ds, source, message, branch)


def _without(ds: Dataset, drop: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """The rows of `ds` except those numbered in `drop` (ascending); untouched batches pass through as they are."""
    for start, batch in ds.iter_batches():
        low, high = np.searchsorted(drop, (start, start + batch.num_rows))
        if low == high:
            yield batch
            continue
        keep = np.ones(batch.num_rows, dtype=bool)
        keep[drop[low:high] - start] = False
        if keep.any():
            yield batch.take(pa.array(np.flatnonzero(keep)))


_Finding = tuple[int, str, str, str, int | None]  # row, check, column, detail, other


class _Scan:
    """One pass over the rows: findings about single rows, and the digests that tell duplicates afterwards."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.images = columns.image_columns(schema)
        self.labels = columns.label_columns(schema)
        self.splits = columns.split_names(schema)
        self.findings: list[_Finding] = []
        self._digests: list[NDArray[np.uint8]] = []
        self._rows: list[NDArray[np.int64]] = []
        self._split: list[NDArray[np.int64]] = []
        self._label: list[NDArray[np.int64]] = []

    def add(self, start: int, batch: pa.RecordBatch) -> None:
        """Take in the rows `start`, `start + 1`, …"""
        before = len(self.findings)
        self._nulls(start, batch)
        for image in self.images:
            self._image(start, batch, image)
        named = self.labels | ({columns.SPLIT: self.splits} if self.splits else {})
        for name, names in named.items():
            self._range(start, batch.column(name), name, names)
        if self.images:
            good = np.ones(batch.num_rows, dtype=bool)
            good[[found[0] - start for found in self.findings[before:]]] = False
            self._remember(start, batch, np.flatnonzero(good))

    def _nulls(self, start: int, batch: pa.RecordBatch) -> None:
        for field_, array in zip(self.schema, batch.columns, strict=True):
            if not field_.nullable and array.null_count:
                for row in np.flatnonzero(columns.null_mask(array)).tolist():
                    detail = "null in a column that allows none"
                    self.findings.append((start + row, "nulls", field_.name, detail, None))

    def _image(self, start: int, batch: pa.RecordBatch, image: columns.ImageColumn) -> None:
        array = batch.column(image.name)
        if image.shape is not None:
            if int(np.prod(image.shape[:2])) == 1:
                return
            flat = columns.tensor_values(array).reshape(batch.num_rows, -1, *image.shape[2:])
            same = (flat == flat[:, :1]).reshape(batch.num_rows, -1).all(axis=1) & ~columns.null_mask(array)
            for row in np.flatnonzero(same).tolist():
                self._constant(start + row, image.name, flat[row, 0])
            return
        present = [(row, value) for row, value in enumerate(columns.byte_values(array)) if value is not None]
        results = images.map_decoded(_constant_colour, [value for _, value in present], "the file")
        for (row, _), result in zip(present, results, strict=True):
            if isinstance(result, SourceError):
                self.findings.append((start + row, "undecodable", image.name, _fact(result), None))
            elif result is not None:
                self._constant(start + row, image.name, result)

    def _constant(self, row: int, column: str, colour: NDArray[np.uint8]) -> None:
        shown = ", ".join(str(value) for value in np.atleast_1d(colour).tolist())
        self.findings.append((row, "constant", column, f"every pixel is {shown}", None))

    def _range(self, start: int, array: pa.Array, name: str, names: list[str]) -> None:
        if not names:
            return
        values = columns.indices(array)
        wrong = ((values < 0) | (values >= len(names))) & ~columns.null_mask(array)
        for row in np.flatnonzero(wrong).tolist():
            detail = f"{int(values[row])} is not one of {len(names)} classes (0 to {len(names) - 1})"
            self.findings.append((start + row, "labels_out_of_range", name, detail, None))

    def _remember(self, start: int, batch: pa.RecordBatch, good: NDArray[np.int64]) -> None:
        """Keep digest, split and label of the good rows; a row with a null image has no image to compare."""
        values = [_row_bytes(batch.column(image.name), image) for image in self.images]
        for column in values:
            good = good[[column[row] is not None for row in good.tolist()]] if len(good) else good
        digests = bytearray()
        for row in good.tolist():
            parts = [blake3(column[row]).digest() for column in values]
            digests += parts[0] if len(parts) == 1 else blake3(b"".join(parts)).digest()
        self._digests.append(np.frombuffer(bytes(digests), dtype=np.uint8).reshape(-1, 32))
        self._rows.append(good + start)
        none = np.zeros(len(good), dtype=np.int64)
        self._split.append(columns.indices(batch.column(columns.SPLIT))[good] if self.splits else none)
        label = next((name for name, names in self.labels.items() if names), None)
        self._label.append(columns.indices(batch.column(label))[good] if label is not None else none)

    def duplicates(self) -> list[_Finding]:
        """Every row but the kept one of each group of equal images."""
        if not self._rows:
            return []
        digests = np.concatenate(self._digests).view(np.uint64)
        rows, split, label = (np.concatenate(part) for part in (self._rows, self._split, self._label))
        rank = np.array([_exposure(name) for name in (*self.splits, "")])[split]  # -1, no split, is the last
        order = np.lexsort((rows, rank, *digests.T))
        digests, rows, split, label = digests[order], rows[order], split[order], label[order]
        starts = np.ones(len(rows), dtype=bool)
        starts[1:] = (digests[1:] != digests[:-1]).any(axis=1)
        kept = np.maximum.accumulate(np.where(starts, np.arange(len(rows)), 0))
        return [self._copy(at, int(kept[at]), rows, split, label) for at in np.flatnonzero(~starts).tolist()]

    def _copy(self, at: int, kept: int, rows: NDArray[Any], split: NDArray[Any], label: NDArray[Any]) -> _Finding:
        crosses = bool(split[at] != split[kept])
        detail = f"the same image stands in {(*self.splits, 'no split')[split[kept]]}" if crosses else "the same image"
        if label[at] != label[kept]:
            names = (*next(names for names in self.labels.values() if names), "nothing")
            detail += f", labelled {names[label[kept]]} there and {names[label[at]]} here"
        column = ", ".join(image.name for image in self.images)
        return int(rows[at]), "leakage" if crosses else "duplicates", column, detail, int(rows[kept])


def _exposure(split: str) -> int:
    """How freely training looks at a split: 0 test, 1 other held-out rows, 2 train."""
    return {"test": 0, "train": 2, "training": 2}.get(split.lower(), 1)


def _fact(error: SourceError) -> str:
    """What an error says is wrong, without its advice: removing the row is the advice here."""
    return str(error).split(";")[0]


def _constant_colour(image: images.Pixels) -> NDArray[np.uint8] | None:
    """The one colour of a constant image, None for any other."""
    first = image[0, 0]
    return np.array(first) if bool((image == first).all()) else None


def _row_bytes(array: pa.Array, image: columns.ImageColumn) -> list[memoryview | None]:
    """The bytes that identify each row's image; None where it is null."""
    if image.shape is None:
        return columns.byte_values(array)
    values = np.ascontiguousarray(columns.tensor_values(array)).reshape(len(array), -1)
    missing = columns.null_mask(array)
    return [None if missing[row] else values[row].data for row in range(len(array))]
