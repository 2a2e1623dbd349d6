"""Find rows that spoil training, and write a version without them: checks in one pass, in this process, for what needs no pipeline.

`find` searches for what is a fault whatever the task is, in this order:

    nulls                no image, or no label
    undecodable          an encoded image that is empty, truncated, damaged, too large or no image at all
    constant             an image whose pixels are all equal
    labels_out_of_range  a class index below 0 or without a name
    duplicates           equal images (texts, tokens) of one side of the split; the first row is kept
    leakage              equal ones on another side. The more held-out row is kept (test, then any other side, then train), so that
                         evaluation stays whole and training loses the copy

A row that one of the first four finds takes no part in the last two, so that the copy that is kept is a good one: what is found is what a
pipeline of these checks would drop. `lepton clean` and pipelines (pipeline.py) have all other checks, choose what becomes of rows, remember
results, and run on a cluster. Nothing is dropped silently: the report lists every row, the new version's lineage counts the reasons, and
the rows stay readable in the parent commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.source import Source
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process import columns
from leptonstore.process import findings as findings_
from leptonstore.process.checks.check import Check, RowCheck, TableCheck
from leptonstore.process.checks.defaults import check_named
from leptonstore.process.derive import publish_derived
from leptonstore.store import Store

FAULTS = ("nulls", "undecodable", "constant", "labels_out_of_range", "duplicates", "leakage")


@dataclass(frozen=True)
class CleanReport:
    """What was found in `rows` rows of the version `commit`. findings: findings.SCHEMA, by row. checks: what was searched for."""

    dataset: str
    commit: str
    fingerprint: str
    rows: int
    findings: pa.Table = field(default_factory=findings_.SCHEMA.empty_table)
    checks: tuple[str, ...] = FAULTS

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


def find(ds: Dataset, checks: Sequence[Check] | None = None) -> CleanReport:
    """Search a dataset (or a view of one) once, in row order. checks: default: those of the list above that fit its columns.

    Encoded images are decoded, in a few threads. Memory: what the checks that compare rows hold of each (64 bytes for these).
    Raises MissingExtra, and SchemaError when a check that was asked for does not fit.
    """
    bound = _faults(ds) if checks is None else [check.bound(ds, ds.schema) for check in checks]
    alone = [check for check in bound if isinstance(check, RowCheck)]
    compared = [check for check in bound if isinstance(check, TableCheck)]
    found: list[pa.Table] = []
    features: list[list[pa.RecordBatch]] = [[] for _ in compared]
    good: list[NDArray[np.bool_]] = []
    names = dict.fromkeys(name for looking in (*alone, *compared) for name in looking.looks_at(ds.schema))
    for start, batch in ds.iter_batches(list(names)) if names else ():
        fine = np.ones(batch.num_rows, np.bool_)
        for check in alone:
            one = check.find(batch.select(list(check.looks_at(ds.schema)))).findings
            fine[one["row"].to_numpy()] = False
            found.append(findings_.renumbered(one, np.arange(start, start + batch.num_rows)))
        for comparing, parts in zip(compared, features, strict=True):
            parts.append(comparing.measured(batch.select(list(comparing.looks_at(ds.schema)))))
        good.append(fine)
    rows = np.flatnonzero(np.concatenate(good)) if good else np.zeros(0, np.int64)
    for comparing, parts in zip(compared, features, strict=True):
        if len(rows):
            table = pa.Table.from_batches(parts, comparing.measures(ds.schema)).take(pa.array(rows))
            found.append(findings_.renumbered(comparing.find_in(table).findings, rows))
    tags = (*(check.tag for check in alone), *(check.tag for check in compared))
    return CleanReport(ds.name, ds.commit, ds.fingerprint, len(ds), findings_.joined(found), tags)


def _faults(ds: Dataset) -> list[Check]:
    """The checks of FAULTS that fit, bound to `ds`."""
    samples = [*(image.name for image in columns.image_columns(ds.schema)), *columns.label_columns(ds.schema)]
    out: list[Check] = []
    for name in FAULTS:
        if name == "nulls" and not samples:
            continue
        check = check_named(name, {"columns": samples} if name == "nulls" else {})
        try:
            bound = check.bound(ds, ds.schema)
            bound.reads(ds.schema)
        except SchemaError:
            continue
        assert isinstance(bound, Check)
        out.append(bound)
    return out


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
