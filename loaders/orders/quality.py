"""How well an order mixes: measured against what a full shuffle does on average.

    row_correlation     of position and row, over the sample: 0 for a full shuffle, 1 for rows as they stand
    neighbour_distance  how far the law of |row(p + 1) - row(p)| is from that of two random rows (Kolmogorov-Smirnov distance, in [0, 1]):
                        near 0 for a full shuffle; for windows of W blocks about 1 / W
    together            how many times more often than in a full shuffle two rows that are neighbours in the data share a batch: 1;
                        for windows about rows / window rows
    imbalance           how many times further than in a full shuffle a batch's class shares are from the data's (mean total variation
                        distance): 1. Without labels: `CLASSES` classes that stand one after another, the worst case; batches of B rows
                        from windows of W blocks are then at about sqrt(1 + B / W)

The whole epoch is looked at, or BATCHES_MAX batches spread over it. What these numbers mean for a model depends on the model: the last two
say how much less independent a batch is, and `imbalance` is what batch normalisation and the gradient's noise see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loaders.order import EpochOrder, Order, Rows

BATCHES_MAX = 4_096  # of 256 rows: a million positions, a fraction of a second
CLASSES = 10


@dataclass(frozen=True)
class ShuffleQuality:
    """What `shuffle_quality` found; see the module. sigmas: how many standard deviations each is from a full shuffle's mean."""

    row_correlation: float
    neighbour_distance: float
    together: float
    imbalance: float
    sigmas: dict[str, float]

    @property
    def full(self) -> bool:
        """Whether nothing tells this order from a full shuffle: all within 4 standard deviations."""
        return all(abs(sigma) < 4 for sigma in self.sigmas.values())


def shuffle_quality(
    order: EpochOrder,
    batch_rows: int = 256,
    labels: npt.NDArray[np.int64] | None = None,
    batches_max: int = BATCHES_MAX,
) -> ShuffleQuality:
    """Measure an epoch in batches of `batch_rows`.

    labels: the class (0, 1, ...) of each row of the dataset, int64, shape (rows,); None: see the module.
    Rows are taken to be [0, order.length), so an order that repeats or leaves out rows differs for that reason, too. Raises ValueError
    for an epoch of less than two batches, or a batch of less than two rows.
    """
    total = order.length // batch_rows if batch_rows > 1 else 0
    if total < 2:
        raise ValueError(
            f"{order.length} positions in batches of {batch_rows} rows: two batches of two rows are needed"
        )
    chosen = np.unique(np.linspace(0, total - 1, min(total, batches_max)).astype(np.int64))
    rows = _batches(order, chosen, batch_rows)
    reference = _batches(Order(order.length, seed=0x5EED), chosen, batch_rows)
    length, count = order.length, rows.size

    positions = (chosen[:, None] * batch_rows + np.arange(batch_rows)).reshape(-1)
    correlation = float(np.corrcoef(positions, rows.reshape(-1))[0, 1])
    distance, pairs = _distance_of_neighbours(rows, length)
    # Pairs (r, r + 1) in a batch of a full shuffle: each of length - 1 pairs is in a given batch with chance B (B - 1) / (n (n - 1)).
    expected = len(chosen) * batch_rows * (batch_rows - 1) / length
    together = _neighbours_together(rows)
    ours, theirs = (_imbalances(values, labels, length) for values in (rows, reference))
    spread = math.sqrt((ours.var() + theirs.var()) / len(chosen)) or math.inf
    return ShuffleQuality(
        row_correlation=correlation,
        neighbour_distance=distance,
        together=together / expected,
        imbalance=float(ours.mean() / theirs.mean()) if theirs.any() else 1.0,
        sigmas={
            "row_correlation": correlation * math.sqrt(count),
            # Kolmogorov's law: 0.87 / sqrt(pairs) on average, with a standard deviation of 0.26 / sqrt(pairs).
            "neighbour_distance": (distance * math.sqrt(pairs) - 0.87) / 0.26,
            "together": (together - expected) / math.sqrt(expected),  # Poisson
            "imbalance": float(ours.mean() - theirs.mean()) / spread,
        },
    )


def padding_share(order: EpochOrder, lengths: npt.NDArray[np.int64], batch_rows: int) -> float:
    """Of all elements of an epoch's batches, each padded to its longest row: the share that is padding. lengths: of each row."""
    padded = kept = 0
    step = max(1, (1 << 16) // batch_rows) * batch_rows
    for start in range(0, order.length, step):
        found = lengths[order.rows_at(start, min(start + step, order.length))].astype(np.int64)
        firsts = np.arange(0, len(found), batch_rows)
        sizes = np.diff(firsts, append=len(found))
        padded += int((np.maximum.reduceat(found, firsts) * sizes).sum())
        kept += int(found.sum())
    return 1 - kept / padded if padded else 0.0


def _batches(order: EpochOrder, chosen: Rows, batch_rows: int) -> Rows:
    """The rows of the chosen batches, shape (batches, batch_rows)."""
    positions = chosen[:, None] * batch_rows + np.arange(batch_rows, dtype=np.int64)
    return order.rows_of(positions.reshape(-1)).reshape(positions.shape)


def _distance_of_neighbours(rows: Rows, length: int) -> tuple[float, int]:
    """(Kolmogorov-Smirnov distance, pairs). Two random points of [0, 1] are nearer than x with chance 2x - x^2."""
    found = np.sort(np.abs(np.diff(rows, axis=1)).reshape(-1)) / length
    law = 2 * found - found * found
    steps = np.arange(len(found) + 1) / len(found)
    return float(max((steps[1:] - law).max(), (law - steps[:-1]).max())), len(found)


def _neighbours_together(rows: Rows) -> int:
    """Pairs of rows (r, r + 1) in one batch."""
    return int((np.diff(np.sort(rows, axis=1), axis=1) == 1).sum())


def _imbalances(rows: Rows, labels: npt.NDArray[np.int64] | None, length: int) -> npt.NDArray[np.float64]:
    """Total variation distance of each batch's class shares from the data's."""
    if labels is None:
        found = rows * CLASSES // length
        shares = np.diff(-(-np.arange(CLASSES + 1) * length // CLASSES)) / length
    else:
        found = labels[rows]
        shares = np.bincount(labels) / len(labels)
    classes = len(shares)
    numbered = found + np.arange(len(rows))[:, None] * classes
    counts = np.bincount(numbered.reshape(-1), minlength=len(rows) * classes).reshape(len(rows), classes)
    distances: npt.NDArray[np.float64] = np.abs(counts / rows.shape[1] - shares).sum(axis=1) / 2
    return distances
