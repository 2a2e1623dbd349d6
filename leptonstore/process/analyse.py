"""Statistics of a dataset version or a view of it, from sketches that merge: what is known of a block of pages is kept under its digests.

    numbers, times      count, nulls, min, max, mean, population standard deviation: exact (sums of floats: to their rounding)
                        quantiles, histogram of 32 equal bins: exact while there are few different values, else ranks are within 0.1 %
                        NaN and infinities are counted apart
    tensors, lists      the same of all elements, and of the lengths of lists
    strings, bytes      the same of their lengths; least and greatest
    different values    exact while there are few, else HyperLogLog (standard error 1.6 %); frequent ones with their counts (Misra-Gries)
    images              sizes with their counts, mean and deviation of each channel, statistics of the pixel values: exact
    class balance       rows per class, over all rows and in each split: exact
    correlation         of all pairs of number columns
    leakage             samples that stand in several splits
    drift               against another version: see statistics/drift.py
    sizes               logical and stored bytes, what deduplication and compression each save

A version that shares pages with one that was analysed on this host costs its new blocks alone (statistics/blocks.py). The result is a
function of the version: threads, and what was kept, do not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leptonstore.dataset import Dataset
from leptonstore.process.columns import SPLIT, split_names
from leptonstore.process.memo import Memo
from leptonstore.process.statistics.drift import drift_of
from leptonstore.process.statistics.gather import Gathered, gather
from leptonstore.process.statistics.leakage import split_leakage
from leptonstore.process.statistics.results import Analysis, Drift, Sizes, SplitLeakage

__all__ = ["Analysis", "analyse"]


def analyse(
    ds: Dataset,
    columns: Sequence[str] | None = None,
    against: Dataset | None = None,
    threads: int | None = None,
    leakage: bool = True,
    keep: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Analysis:
    """Describe a version, or a view.

    columns: those that are asked for; None: all.  against: an older version (or a view), to say what has changed since.
    leakage:  whether samples are looked for that several splits share; reads the columns of images, texts and tokens (no large value).
    threads:  None: as many as there are processors.  keep: whether sketches are kept for the next time (in the store's cache directory).
    progress: is told how many rows are done, of `ds` and then of `against`.

    Raises SchemaError (no such column), MissingExtra (image files without Pillow), ChunkMissing, ChunkCorrupt, FormatDamaged.
    """
    names = [field.name for field in ds.fields(columns)]
    memo = Memo.of(ds.store) if keep else None
    found = gather(ds, names, memo, threads, progress)
    drift = None
    if against is not None:
        both = [name for name in names if name in against.schema.names]
        told = None if progress is None else lambda rows: progress(len(ds) + rows)
        before = gather(against, both, Memo.of(against.store) if keep else None, threads, told)
        drift = drift_of(found, before, against, ds.schema if columns is None else None)
    return _analysis(ds, found, drift, split_leakage(ds) if leakage and columns is None else None)


def _analysis(ds: Dataset, found: Gathered, drift: Drift | None, leakage: SplitLeakage | None) -> Analysis:
    stats = ds.stats()
    correlation = None
    names, left_out = found.correlated
    if found.moments is not None:
        correlation = found.moments.result(names, left_out)
    return Analysis(
        dataset=ds.name,
        commit=ds.commit,
        fingerprint=ds.fingerprint,
        rows=len(ds),
        splits=_splits(ds, found),
        columns=tuple(sketch.analysis(one) for one, sketch in zip(found.watched, found.columns, strict=True)),
        balance=tuple(one.result(tables) for one, tables in zip(found.classes, found.tables, strict=True)),
        sizes=Sizes(stats.logical_bytes, stats.unique_bytes, stats.stored_bytes),
        correlation=correlation,
        leakage=leakage,
        drift=drift,
        blocks=found.blocks,
        reused=found.reused,
    )


def _splits(ds: Dataset, found: Gathered) -> dict[str, int]:
    """Rows of each split, where the column of splits was looked at."""
    names = split_names(ds.schema)
    if not names or SPLIT not in [one.field.name for one in found.watched]:
        return {}
    numbers = found.sketch(SPLIT).numbers
    counts = (numbers.counts() if numbers is not None else None) or {}
    return {name: counts.get(index, 0) for index, name in enumerate(names)}
