"""What reading some rows will ask the hot cache for, and in which order: how a loader, which knows its rows, tells the cache its plan.

Of each batch, as `Dataset.take` reads it: the pages of each column that are not kept by the process, then the large values of each
column in the order of the rows. Large values that stand in pages with many small ones (not `is_directory`) are left out: to know
them, the pages would have to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leptonstore.cache.chunks import CachedChunks
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.pages import Rows
from leptonstore.dataset.values import Column
from leptonstore.digest import DIGEST_BYTES
from leptonstore.format.page import REFERENCE

Keys = np.ndarray[Any, np.dtype[np.uint8]]  # of shape (n, 32)


def future_keys(ds: Dataset, rows: Rows, sizes: Sequence[int], columns: Sequence[str]) -> Keys:
    """The keys of batches of `sizes` rows each, `rows` being the rows of all of them, one after another.

    Reads nodes and pages of references. Raises what reading raises; ValueError when `ds` has no cache.
    """
    chunks = ds.chunks
    if not isinstance(chunks, CachedChunks):
        raise ValueError("only what is read through a hot cache has keys there")
    if not len(rows):
        return np.empty((0, DIGEST_BYTES), np.uint8)
    base = rows if ds.selection is None else ds.selection[rows]
    batches = np.repeat(np.arange(len(sizes)), sizes)
    found: list[tuple[Rows, int, bytes]] = []  # (batch of each key, place in the order of a batch, keys)
    for number, name in enumerate(columns):
        field = ds.schema.field(name)
        used, which = ds.pages.spread(base, field)
        in_directory = np.array([stretch.is_directory for stretch in used])[which]
        pairs = np.unique(batches[~in_directory] * len(used) + which[~in_directory])
        digests = [used[at].parts[0].digest for at in (pairs % len(used)).tolist()]
        found.append((pairs // len(used), number, b"".join(chunks.keys(digests))))
        if in_directory.any():
            column = ds.pages.gather(base[in_directory], [field])[0]
            if column.references is not None:
                whose = batches[in_directory][column.references]
                found.append((whose, len(columns) + number, b"".join(chunks.keys(_referenced(column)))))
    keys = np.frombuffer(b"".join(keys for _, _, keys in found), np.uint8).reshape(-1, DIGEST_BYTES)
    stages = np.concatenate([np.full(len(whose), stage) for whose, stage, _ in found])
    return keys[np.lexsort((stages, np.concatenate([whose for whose, _, _ in found])))]


def _referenced(column: Column) -> list[bytes]:
    """The digests of the values that stand elsewhere, in the order of the rows."""
    joined = b"".join(column.values.filter(column.references).to_pylist())
    return [joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), REFERENCE.size)]
