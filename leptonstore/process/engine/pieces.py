"""What flows through a pipeline: pieces of a table, and the steps that they go through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset.values import Column
from leptonstore.process.engine.unread import Unread
from leptonstore.store import Store

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Some rows. rows: their numbers in the version that is read, ascending. columns: as pages keep them (large values are references).

    findings: what was found on the way (findings.SCHEMA; `row` is the row of the version), None: nothing. unread: columns of which the step
    asked for no more than that.
    """

    rows: Rows
    columns: dict[str, Column]
    findings: pa.Table | None = None
    unread: Mapping[str, Unread] = field(default_factory=dict)


class Step(Protocol):
    """A pickled callable that workers give pieces to: fewer rows may come back, in order. Threads: any, several at once.

    One with an attribute `bounded` that is true looks at the large values of a few rows at a time by itself; to others pieces come that
    refer to SCAN_SLICE_BYTES, and what they make of these is put together. Such a step may also have an attribute `unread`: of columns of
    which it looks up rows by the digests of their values, name -> digest of what it does with them (unread.py); and `makes_values`: whether
    it makes values of no fixed width, of which a task holds as many as it reads.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the version that its pieces must have."""

    @property
    def schema(self) -> pa.Schema:
        """Of the columns of the pieces that it returns, in this order."""

    def __call__(self, piece: Piece, store: Store) -> Piece:
        """store: where references of the piece are read, and where large values that it makes are put (values.intern)."""
