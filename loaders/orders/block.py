"""The block-wise shuffle: for data larger than the cache, where a full shuffle would fetch every page many times.

    rows       | block 0 | block 1 | block 2 | ...  | last, short |     `block_rows` consecutive rows each
    blocks     in a keyed permutation; the short one stands at a keyed slot
    windows    | blocks 7, 31, 2 | blocks 18, last, 5 | ...             `window_blocks` blocks each; the last window may have fewer
    positions  inside a window its rows stand in a keyed permutation of all of them

So a window's data is read once, block by block in long runs, while training sees its rows mixed: the shuffle window of MosaicML
Streaming's `py1br`, as a function of the position. Memory and time do not depend on the number of rows: a position costs the
permutation of its window, and a look-up of its block. What must be kept at a time is one window (and what is read ahead of the next).

How well that mixes depends on the number of blocks in a window and on how much neighbouring rows resemble each other: docs/orders.md
has the measured table, `loaders.orders.quality` measures yours.

Nothing of this may change without new context strings: golden vectors pin it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loaders.order import ORDER_ROWS_MAX, BoundOrder, ByPosition, Order, Rows, Windows
from loaders.orders.keys import require_seed, sub_seed, whole
from loaders.orders.positions import grouped

# A row group has 3,000 rows on average and at most 8,000 (leptonstore/limits.py), and is cut by content: a block of consecutive rows
# shares its first and last row group with other blocks. Of pages that are read whole (columns of a fixed width, where they are not in
# an arena), blocks of 4,096 rows fetch 1.7 times what they use, of 8,192 1.4 times; of others (parts of 24 KiB, large values) hardly more.
BLOCK_ROWS = 4_096
# Mixing is a matter of the number of blocks: on data sorted by class, batches of 256 rows are sqrt(1 + 256 / 128) = 1.7 times as uneven
# as in a full shuffle (measured, docs/orders.md). 524,288 rows in a window; MosaicML Streaming's has 262,144 by default.
WINDOW_BLOCKS = 128
BLOCK_BYTES = 8 << 20  # `of_bytes`: what a reader fetches from an object store at a time

_CONTEXT = "lepton.orders.block.v1"
_CONTEXT_SLOT = "lepton.orders.block.v1 slot of the short block"
_CONTEXT_WINDOW = "lepton.orders.block.v1 window"


@dataclass(frozen=True)
class BlockShuffle:
    """Blocks of consecutive rows in random order, rows shuffled within windows of several blocks. Every row once an epoch.

    block_rows:    rows of a block, >= 1. Longer blocks read better, and mix worse.
    window_blocks: blocks of a window, >= 1. The window should fit in the cache with as much again for reading ahead.

    The sizes are part of the order, and so of states and receipts: they are never taken from the memory of a host.
    Raises ValueError for sizes that cannot be.
    """

    block_rows: int = BLOCK_ROWS
    window_blocks: int = WINDOW_BLOCKS

    def __post_init__(self) -> None:
        for name in ("block_rows", "window_blocks"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1, ORDER_ROWS_MAX))

    @classmethod
    def of_bytes(cls, row_bytes: float, window_bytes: int) -> BlockShuffle:
        """Sizes for rows of `row_bytes` bytes: blocks of 8 MiB, but no more rows than BLOCK_ROWS, in windows of `window_bytes`.

        The result is the same on every host that is given the same numbers: give them, do not measure them.
        """
        block_rows = int(min(max(BLOCK_BYTES / max(row_bytes, 1), 1), BLOCK_ROWS))
        return cls(block_rows, max(1, round(window_bytes / (max(row_bytes, 1) * block_rows))))

    def bind(self, source: Any) -> BoundOrder:
        """For `source.rows` rows; reads nothing."""
        return _BoundBlockShuffle(source.rows, self.block_rows, self.window_blocks)

    def spec(self) -> dict[str, Any]:
        """Name, version and sizes."""
        return {
            "name": "block-shuffle",
            "version": 1,
            "block_rows": self.block_rows,
            "window_blocks": self.window_blocks,
        }


@dataclass(frozen=True)
class _BoundBlockShuffle:
    rows: int
    block_rows: int
    window_blocks: int

    def epoch(self, seed: int, epoch: int) -> BlockOrder:
        return BlockOrder(self.rows, self.block_rows, self.window_blocks, seed, epoch)


@dataclass(frozen=True)
class BlockOrder(ByPosition):
    """One epoch of a BlockShuffle. Immutable; any thread. Parameters as there, and in `Order`."""

    rows: int
    block_rows: int = BLOCK_ROWS
    window_blocks: int = WINDOW_BLOCKS
    seed: int = 0
    epoch: int = 0
    _blocks: int = field(init=False, repr=False, compare=False)
    _missing: int = field(init=False, repr=False, compare=False)  # rows that the short block lacks
    _short_slot: int = field(
        init=False, repr=False, compare=False
    )  # the slot, of _blocks, at which the short block stands
    _full: Order = field(init=False, repr=False, compare=False)  # of the blocks that are not short
    _key: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_seed(self.seed, self.epoch)
        full, short = divmod(self.rows, self.block_rows)
        blocks = full + (short > 0)
        key = sub_seed(_CONTEXT, self.seed, self.rows, self.block_rows, self.window_blocks)
        made = {
            "_blocks": blocks,
            "_missing": (self.block_rows - short) % self.block_rows,
            "_short_slot": sub_seed(_CONTEXT_SLOT, key, self.epoch) % blocks if short else blocks,
            "_full": Order(full, key, self.epoch),
            "_key": key,
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def length(self) -> int:
        """Every row has one position."""
        return self.rows

    def _evaluate(self, positions: Rows) -> Rows:
        out = np.empty(positions.shape, np.int64)
        for window, where in grouped(self._windows_of(positions)):
            begin, size = self._span(window)
            key = sub_seed(_CONTEXT_WINDOW, self._key, window)
            inside = Order(size, key, self.epoch).rows_of(positions[where] - begin)
            first = window * self.window_blocks
            if (
                self._short_slot // self.window_blocks == window
            ):  # rows behind the short block move up, as if it were whole
                end = (self._short_slot - first + 1) * self.block_rows - self._missing
                inside = inside + np.where(inside >= end, self._missing, 0)
            slots, offsets = np.divmod(inside, self.block_rows)
            out[where] = self._blocks_of(window)[slots] * self.block_rows + offsets
        return out

    @property
    def windows(self) -> Windows:
        """(start, stop) -> the windows that these positions fall into, as positions [first, end) of the epoch. Raises as `rows_at` does.

        The rows of a window, sorted, are `window_blocks` runs of consecutive rows (fewer where blocks are neighbours).
        """
        return self._windows

    def _windows(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"positions {start} to {stop} are outside an epoch of {self.length} positions")
        end = start
        while end < stop:
            first, size = self._span(int(self._windows_of(np.array([end], np.int64))[0]))
            end = first + size
            yield first, end

    def _windows_of(self, positions: Rows) -> Rows:
        """The window of each position."""
        per_window = self.window_blocks * self.block_rows
        short_window = self._short_slot // self.window_blocks
        end = (short_window + 1) * per_window - self._missing  # positions from here on are that many early
        return (positions + np.where(positions >= end, self._missing, 0)) // per_window

    def _span(self, window: int) -> tuple[int, int]:
        """(first position, positions) of a window."""
        short_window = self._short_slot // self.window_blocks
        first = window * self.window_blocks
        blocks = min(self.window_blocks, self._blocks - first)
        begin = first * self.block_rows - (self._missing if window > short_window else 0)
        return begin, blocks * self.block_rows - (self._missing if window == short_window else 0)

    def _blocks_of(self, window: int) -> Rows:
        """The blocks of a window, slot by slot."""
        first = window * self.window_blocks
        slots = np.arange(first, min(first + self.window_blocks, self._blocks), dtype=np.int64)
        short = slots == self._short_slot
        out = np.full(slots.shape, self._blocks - 1, np.int64)
        whole = slots[~short]
        out[~short] = self._full.rows_of(whole - (whole > self._short_slot))
        return out
