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
    padding: how many of the last `rows` are no part of the share, but there to give the batch its static shape (`loaders.pad`). 0 unless
             `padded` made the step, which is done right before its batch is: states, receipts and counts never see padding.
    """

    epoch: int
    start: int
    rows: Rows
    padding: int = 0
