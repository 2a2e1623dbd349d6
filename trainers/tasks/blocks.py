"""Evaluation in fixed blocks of rows: what a model computes for a row must not depend on how many ranks there are.

The last bits of a matrix product depend on how many rows it has. So rows are cut into blocks whose size depends on the task alone, and
blocks, not rows, are shared out: block n is rank n mod W's, whole, at any number of ranks W.

    rows     0 ....... b | b ....... 2b | 2b ....... 3b | 3b ... end
    W = 2    rank 0      | rank 1       | rank 0        | rank 1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from loaders import DataLoader
from loaders.order import BoundOrder, ByPosition, EpochOrder, Rows
from trainers.parallel import World

# Memory of what goes into a model and comes out of it, of one block. Activations are some ten times that.
BLOCK_BYTES = 8 << 20
# More gain nothing per row; activations of 500 rows of MNIST are over 32 MiB, which no allocator keeps (trainers.allocator): 0.09 to 0.36 s
# of page faults per 10,000 rows, beside 0.57 s of work on one core.
BLOCK_ROWS_MAX = 256


def block_rows(row_bytes: int) -> int:
    """Rows of a block whose rows have so many bytes: float32 inputs and outputs together."""
    return max(1, min(BLOCK_ROWS_MAX, BLOCK_BYTES // max(1, row_bytes)))


@dataclass(frozen=True)
class RankBlocks:
    """An order (loaders.order.OrderStrategy): the blocks of one rank, in row order."""

    block: int
    rank: int
    size: int

    def bind(self, source: Any) -> BoundOrder:
        """For `source.rows` rows."""
        return _Bound(self, source.rows)

    def spec(self) -> dict[str, Any]:
        """With its place among the ranks."""
        return {"name": "rank-blocks", "version": 1, "block": self.block, "rank": self.rank, "size": self.size}


@dataclass(frozen=True)
class _Bound:
    blocks: RankBlocks
    rows: int

    def epoch(self, seed: int, epoch: int) -> EpochOrder:
        return _Epoch(self.blocks, self.rows)


@dataclass(frozen=True)
class _Epoch(ByPosition):
    blocks: RankBlocks
    rows: int

    @property
    def length(self) -> int:
        """All blocks of the rank but the last row's are whole."""
        block, rank, size = self.blocks.block, self.blocks.rank, self.blocks.size
        whole, rest = divmod(self.rows, block)
        mine = len(range(rank, whole, size)) * block
        return mine + (rest if whole % size == rank else 0)

    def _evaluate(self, positions: Rows) -> Rows:
        number, place = np.divmod(positions, self.blocks.block)
        return (number * self.blocks.size + self.blocks.rank) * self.blocks.block + place


def block_loader(rows: Any, block: int, world: World, **options: Any) -> DataLoader:
    """Every row once, in row order, as whole blocks of this rank. options: of DataLoader."""
    order = RankBlocks(block, world.data_rank, world.data_size)
    return DataLoader(rows, block, order=order, rank=0, world_size=1, receipts=False, **options)


def blocks_of(loader: DataLoader) -> Iterator[int]:
    """The first row of each batch of a `block_loader`, without end."""
    order = loader.order
    assert isinstance(order, RankBlocks)
    number = order.rank
    while True:
        yield number * order.block
        number += order.size
