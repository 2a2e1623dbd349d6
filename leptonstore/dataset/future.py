"""What reading some rows will ask the hot cache for, and in which order: how a loader, which knows its rows, tells the cache its plan.

Of each batch, as `Dataset.take` reads it: the pages of each column that are not kept by the process, then the large values of each
column in the order of the rows. Large values that stand in pages with many small ones (not `is_directory`) are left out: to know
them, the pages would have to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from leptonstore.cache.chunks import CachedChunks
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.pages import Rows, Stretch
from leptonstore.dataset.values import Column
from leptonstore.digest import DIGEST_BYTES
from leptonstore.format.page import REFERENCE

Keys = np.ndarray[Any, np.dtype[np.uint8]]  # of shape (n, 32)


def future_keys(
    ds: Dataset,
    rows: Rows,
    sizes: Sequence[int],
    columns: Sequence[str],
    derived: Mapping[str, Callable[[Keys], Keys]] | None = None,
) -> Keys:
    """The keys of batches of `sizes` rows each, `rows` being the rows of all of them, one after another.

    derived: of columns of which something else is asked for than their values (derived.py): from the digests of large values to keys.
    Reads nodes and pages of references. Raises what reading raises; ValueError when `ds` has no cache.
    """
    chunks = ds.chunks
    if not isinstance(chunks, CachedChunks):
        raise ValueError("only what is read through a hot cache has keys there")
    return _asked_for(ds, rows, sizes, columns, chunks.key_rows, derived or {})


def future_reads(ds: Dataset, rows: Rows, sizes: Sequence[int], columns: Sequence[str]) -> Keys:
    """`future_keys` of a version that is read through no hot cache: the digests. Raises what reading raises."""
    return _asked_for(ds, rows, sizes, columns, lambda digests: digests, {})


def future_digests(ds: Dataset, rows: Rows, columns: Sequence[str]) -> Keys:
    """The digests of what one batch of these rows will read. Raises what reading raises."""
    return _asked_for(ds, rows, [len(rows)], columns, lambda digests: digests, {})


def _asked_for(
    ds: Dataset,
    rows: Rows,
    sizes: Sequence[int],
    columns: Sequence[str],
    key_rows: Callable[[Keys], Keys],
    derived: Mapping[str, Callable[[Keys], Keys]],
) -> Keys:
    if not len(rows):
        return np.empty((0, DIGEST_BYTES), np.uint8)
    base = rows if ds.selection is None else ds.selection[rows]
    batches = np.repeat(np.arange(len(sizes)), sizes)
    found: list[tuple[Rows, int, Keys]] = []  # (batch of each key, place in the order of a batch, keys)
    for number, name in enumerate(columns):
        used, which = ds.pages.spread(base, ds.schema.field(name))
        directories = np.array([stretch.is_directory for stretch in used])
        if not directories.all():
            read = ~directories[which]
            pairs = np.unique(batches[read] * len(used) + which[read])
            digests = b"".join(stretch.parts[0].digest for stretch in used)
            keys = key_rows(np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES))
            found.append((pairs // len(used), number, keys[pairs % len(used)]))
        if directories.any():
            column, whose = _directory_rows(ds, base, used, which, directories, batches)
            if column.references is not None:
                keys = derived.get(name, key_rows)(_referenced(column))
                found.append((whose[column.references], len(columns) + number, keys))
    if not found:
        return np.empty((0, DIGEST_BYTES), np.uint8)
    stages = np.concatenate([np.full(len(whose), stage, np.int64) for whose, stage, _ in found])
    order = np.lexsort((stages, np.concatenate([whose for whose, _, _ in found])))
    return np.concatenate([keys for _, _, keys in found])[order]


def _directory_rows(
    ds: Dataset, base: Rows, used: list[Stretch], which: Rows, directories: Rows, batches: Rows
) -> tuple[Column, Rows]:
    """What stands in the pages of references, and the batch of each row there."""
    if directories.all():
        return ds.pages.gather_spread(base, [(used, which)])[0], batches
    chosen = directories[which]
    return ds.pages.gather(base[chosen], [used[0].field])[0], batches[chosen]


def _referenced(column: Column) -> Keys:
    """The digests of the values that stand elsewhere, in the order of the rows."""
    joined = b"".join(column.values.filter(column.references).to_pylist())
    return np.frombuffer(joined, np.uint8).reshape(-1, REFERENCE.size)[:, :DIGEST_BYTES]
