"""One step of a rank in an epoch: which positions, and so which rows, its batch is made of.

Everything that makes a batch is a function of the step alone: a step can be made again anywhere, and gives the same batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from loaders.order import Rows

NO_ROWS: Rows = np.empty(0, np.int64)


class Step(NamedTuple):
    """epoch: the epoch's number.
    start: position in the epoch of the first row; those of the others follow it one by one.
    rows:  int64, shape (rows of this rank's share,): the rows of the dataset, view or mixture at these positions. May be empty.
    padding: int64, rows that are read after `rows` only to give the batch its static shape (loaders.pad): none without pad mode.
             They are no part of the share: states, receipts and counts know nothing of them.
    """

    epoch: int
    start: int
    rows: Rows
    padding: Rows = NO_ROWS

    @property
    def read(self) -> Rows:
        """The rows of the batch: the share, then the padding."""
        return np.concatenate([self.rows, self.padding]) if len(self.padding) else self.rows
