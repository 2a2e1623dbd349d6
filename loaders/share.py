"""Which positions of an epoch a rank takes at a step. Pure arithmetic; nothing here reads data.

An epoch is cut into global batches of B consecutive positions. Rank r of W takes positions
[floor(r b / W), floor((r + 1) b / W)) of each, where b is the size of that batch: B, or what is left for the last one.
So the concatenation of the ranks' shares is the global batch for every W, divisible or not; shares differ by one row at
most; every rank takes the same number of steps, and a rank whose share is empty gets a batch of zero rows.

An epoch may start at any position (a restore does): its batches are then cut from there on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from loaders.order import BLOCK_POSITIONS, EpochOrder, Rows
from loaders.step import Step

# Positions whose rows a rank computes at once: two blocks, some 0.5 MiB. Fewer than one block waste numpy's calls.
WINDOW_POSITIONS = 2 * BLOCK_POSITIONS
# Of the first window of a pass; each has twice as many as the one before it. A restored loader's first batch waits for no more.
FIRST_POSITIONS = 1 << 10


@dataclass(frozen=True)
class Share:
    """Rank `rank` of `world_size` in an epoch of `length` positions, cut into global batches of `global_batch` from `start`.

    drop_last: whether a last global batch with fewer than `global_batch` rows is left out.
    """

    length: int
    global_batch: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    start: int = 0

    @property
    def full_steps(self) -> int:
        """Whole global batches from `start` on."""
        return (self.length - self.start) // self.global_batch

    @property
    def last_rows(self) -> int:
        """Rows of the short global batch at the end; 0 when there is none, or when it is left out."""
        return 0 if self.drop_last else (self.length - self.start) % self.global_batch

    @property
    def steps(self) -> int:
        """Global batches from `start` to the end of the epoch."""
        return self.full_steps + (self.last_rows > 0)

    def part_of(self, batch_rows: int) -> tuple[int, int]:
        """[start, stop) of this rank within a global batch of `batch_rows` rows."""
        return self.rank * batch_rows // self.world_size, (self.rank + 1) * batch_rows // self.world_size

    def positions(self, step: int) -> tuple[int, int]:
        """Positions [start, stop) of the epoch that this rank takes at `step`, 0 <= step < steps."""
        start, stop = self.batch_positions(step)
        low, high = self.part_of(stop - start)
        return start + low, start + high

    def batch_positions(self, step: int) -> tuple[int, int]:
        """Positions [start, stop) of the global batch at `step`."""
        start = self.start + step * self.global_batch
        return start, start + (self.global_batch if step < self.full_steps else self.last_rows)


def row_windows(order: EpochOrder, share: Share) -> Iterator[tuple[Rows, list[int]]]:
    """This rank's rows for all its steps, some steps at a time: (int64 rows, number of rows of each step).

    A window has at most WINDOW_POSITIONS rows, but at least one step; every row array is fresh memory.
    """
    low, high = share.part_of(share.global_batch)
    positions, first = min(FIRST_POSITIONS, WINDOW_POSITIONS), 0
    while first < share.full_steps:
        count = min(max(1, positions // max(high - low, 1)), share.full_steps - first)
        base = share.start + first * share.global_batch
        if share.world_size == 1:
            rows = order.rows_at(base, base + count * share.global_batch)
        else:
            firsts = np.arange(count, dtype=np.int64) * share.global_batch + (base + low)
            rows = order.rows_of((firsts[:, None] + np.arange(high - low, dtype=np.int64)).reshape(-1))
        yield rows, [high - low] * count
        positions, first = min(2 * positions, WINDOW_POSITIONS), first + count
    if share.last_rows:
        start, stop = share.positions(share.full_steps)
        yield order.rows_at(start, stop), [stop - start]


def steps_of(epoch: int, share: Share, windows: Iterator[tuple[Rows, list[int]]]) -> Iterator[Step]:
    """The steps that `windows` (of `row_windows` of the same share) consist of."""
    low = share.part_of(share.global_batch)[0]
    full_steps, number = share.full_steps, 0
    for rows, sizes in windows:
        first = 0
        for size in sizes:
            if number == full_steps:
                low = share.part_of(share.last_rows)[0]
            yield Step(epoch, share.start + number * share.global_batch + low, rows[first : first + size])
            first += size
            number += 1


class WorldChanged(RuntimeError):
    """The ranks that share a pass are not those that began it."""


def find_rank(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """(rank, world size): what is given wins, then torch.distributed when initialised, then the environment variables
    RANK and WORLD_SIZE (both, as torchrun sets them), then (0, 1).

    Raises ValueError when the rank is not in [0, world size).
    """
    if rank is None or world_size is None:
        found_rank, found_world_size = _from_torch() or _from_environment() or (0, 1)
        rank = found_rank if rank is None else rank
        world_size = found_world_size if world_size is None else world_size
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in [0, world_size={world_size}); give both rank= and world_size=")
    return rank, world_size


def same_world() -> Callable[[], None]:
    """A function that raises WorldChanged once torch.distributed says something else than now.

    0.2 us without a process group, 1 us with one.
    The environment is not asked again: nobody changes it under a running process.
    """
    import torch.distributed as dist

    was = _from_torch()
    initialised = dist.is_initialized if dist.is_available() else lambda: False

    def check() -> None:
        if initialised() or was is not None:
            now = _from_torch()
            if now != was:
                raise WorldChanged(
                    f"torch.distributed has changed from {_told(was)} to {_told(now)} while a pass over the data runs, and its "
                    "steps were shared out among the ranks of before: take state_dict(), and go on with a new iter()"
                )

    return check


def _told(world: tuple[int, int] | None) -> str:
    return "no process group" if world is None else f"rank {world[0]} of {world[1]}"


def _from_torch() -> tuple[int, int] | None:
    # Whoever initialised it has imported it: so this neither needs torch nor waits for its import.
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return None


def _from_environment() -> tuple[int, int] | None:
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world_size is None:
        return None
    try:
        return int(rank), int(world_size)
    except ValueError:
        raise ValueError(
            f"the environment has RANK={rank!r} and WORLD_SIZE={world_size!r}; both must be whole numbers"
        ) from None
