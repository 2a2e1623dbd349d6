"""Pad mode: batches of one static shape, and a mask that says which of their rows are real.

A rank's share of a global batch of B rows has at most ceil(B / W) rows. In pad mode every batch has exactly that many (rounded up to
a multiple where devices want one), the last one and those of smaller shares too, and a column "_valid" (bool, shape (rows,)):

    share of 3 rows, size 5      a  b  c  c  c        a row of padding repeats the last row of the share
                      _valid     1  1  1  0  0

    empty share, size 2          d  d                 nothing to repeat: a row of the epoch near it
                      _valid     0  0

Repeats, and not zeros, because a real row is always a legal input: no logarithm of 0, no norm of 0 whose gradient is NaN (which
no mask undoes: NaN x 0 is NaN), no class that does not exist; lists and images have an obvious content; and statistics over
a batch move least. Sums over `_valid` are exact: every row of the epoch is valid in exactly one batch of one rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from loaders.order import EpochOrder
from loaders.step import Step

VALID = "_valid"


def padded_rows(global_batch: int, world_size: int, multiple: int = 1) -> int:
    """Rows of every batch of a rank in pad mode: the largest share, rounded up to a multiple."""
    largest = -(-global_batch // world_size)
    return -(-largest // multiple) * multiple


def padded(steps: Iterator[Step], order: EpochOrder, size: int) -> Iterator[Step]:
    """The same steps, each with as much padding as makes it `size` rows long."""
    for step in steps:
        missing = size - len(step.rows)
        if missing:
            at = min(step.start, order.length - 1)
            spare = step.rows[-1:] if len(step.rows) else order.rows_at(at, at + 1)
            step = step._replace(rows=np.concatenate([step.rows, np.repeat(spare, missing)]), padding=missing)
        yield step


def valid_rows(step: Step) -> npt.NDArray[np.bool_]:
    """The column "_valid" of a step's batch: bool, shape (rows with padding,). Fresh memory."""
    mask = np.ones(len(step.rows), np.bool_)
    mask[len(step.rows) - step.padding :] = False
    return mask
