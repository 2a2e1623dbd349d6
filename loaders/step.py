"""One step of a rank in an epoch: which positions, and so which rows, its batch is made of.

Everything that makes a batch is a function of the step alone: a step can be made again anywhere, and gives the same batch.
"""

from __future__ import annotations

from typing import NamedTuple

from loaders.order import Rows


class Step(NamedTuple):
    """epoch: the epoch's number.
    start: position in the epoch of the first row; those of the others follow it one by one.
    rows:  int64, shape (rows of this rank's share,): the rows of the dataset, view or mixture at these positions. May be empty.
    """

    epoch: int
    start: int
    rows: Rows
