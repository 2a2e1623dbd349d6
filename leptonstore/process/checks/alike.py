"""Rows that are alike: which belong together, and which one of them is kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def groups(count: int, first: Rows, second: Rows) -> Rows:
    """For each of `count` rows the lowest one that it is connected with, over any number of pairs (first[i], second[i])."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(count, count))
    label = connected_components(links, directed=False)[1]
    lowest = np.full(count, count, np.int64)
    np.minimum.at(lowest, label, np.arange(count))
    return lowest[label]


def kept_of(group: Rows, exposure: Rows) -> Rows:
    """For each row the one of its group that is kept: of the least exposure (chosen.exposure), then the first.

    group: numbers from 0 to below the number of rows.
    """
    order = np.lexsort((np.arange(len(group)), exposure, group))
    begins = np.flatnonzero(np.diff(group[order], prepend=-1))
    best = np.zeros(len(group), np.int64)
    best[group[order[begins]]] = order[begins]
    return best[group]
